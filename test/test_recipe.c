// The recipe table: every row against HALO's table of levels (arXiv 2501.02625), every rule against a row that breaks it, and looking up.
#include "../halo/recipe.h"
#include "test.h"

// ---- the table, written a second time: a letter an operand, in the order F: X W, E: dY W, G: dY X
//   q one scale, r rotated and one scale, l a scale per row (line), b per block, c cast, . BF16
typedef struct {
    const char* level;
    const char* dtypes;   // first letters: i, 8, 6
    const char* operands;
} Level;

static const Level levels[] = {
    {"bf16", ".", "......"}, {"halo0", "i86", "qqqqqq"}, {"halo1", "i86", "rrqrqr"}, {"halo2", "i86", "rrrrqr"},
    {"haloi", "i86", "cccccc"}, {"switchback", "i8", "lqlq.."}, {"jetfire", "i", "bbbbbb"},
};

static bool opnd_is(Opnd o, char letter, char dtype) {
    Fmt fmt = letter == '.' ? BF16 : dtype == 'i' ? INT8 : dtype == '8' ? FP8_E4M3 : FP6_E3M2;
    Gran gran = letter == 'c' || letter == '.' ? NO_SCALE : letter == 'l' ? PER_ROW : letter == 'b' ? PER_BLOCK32 : PER_TENSOR;
    float clip = fmt == FP6_E3M2 && gran != NO_SCALE ? 0.75f : 1.0f;
    return o.fmt == fmt && o.gran == gran && o.rotate == (letter == 'r') && o.clip == clip;
}

static void table_case(void) {
    int count, wanted = 0;
    const Recipe* table = recipe_table(&count);
    for (int l = 0; l < COUNT(levels); l++) {
        for (const char* d = levels[l].dtypes; *d; d++, wanted++) {
            const char* dtype = *d == '.' ? "bf16" : *d == 'i' ? "int8" : *d == '8' ? "fp8" : "fp6";
            const Recipe* r = recipe_pick(levels[l].level, dtype);
            const Opnd operands[6] = {r->fx, r->fw, r->ee, r->ew, r->ge, r->gx};
            bool same = true;
            for (int i = 0; i < 6; i++) same = same && opnd_is(operands[i], levels[l].operands[i], *d);
            const char* error = recipe_error(r);
            ok(same && !error, "recipe.table %s%s%s", r->name, error ? ": " : "", error ? error : "");
        }
    }
    bool unique = true;
    for (int i = 0; i < count; i++)
        for (int j = 0; j < i; j++) unique = unique && strcmp(table[i].name, table[j].name);
    ok(count == wanted && unique, "recipe.table %d rows, names differ", count);
}

// ---- rows that cannot work: one change to a good row each, and a word of the reason
typedef struct {
    const char* base;
    int operand;          // 0..5: fx fw ee ew ge gx
    Opnd planted;
    const char* reason;   // NULL: the changed row is fine
} Planted;

static const Planted planted[] = {
    {"halo1-int8", 0, {INT8, PER_TENSOR, false, 1}, "F: X and W rotate together"},
    {"halo0-fp8", 1, {FP8_E4M3, PER_TENSOR, true, 1}, "F: X and W rotate together"},
    {"halo2-int8", 4, {INT8, PER_TENSOR, true, 1}, "no counterpart in X"},
    {"halo0-int8", 1, {FP8_E4M3, PER_TENSOR, false, 1}, "INT8 with FP8"},
    {"halo0-int8", 5, {FP6_E3M2, PER_TENSOR, false, 1}, "INT8 with FP8"},
    {"halo0-fp8", 2, {BF16, NO_SCALE, false, 1}, "BF16 with 8 bits"},
    {"switchback-int8", 4, {INT8, PER_TENSOR, false, 1}, "BF16 with 8 bits"},
    {"switchback-int8", 3, {INT8, PER_ROW, false, 1}, "E: a scale per row of W"},
    {"halo0-int8", 4, {INT8, PER_ROW, false, 1}, "G: a scale per row"},
    {"halo0-int8", 5, {INT8, PER_ROW, false, 1}, "G: a scale per row"},
    {"jetfire-int8", 0, {INT8, PER_ROW, false, 1}, "per row with scales per block"},
    {"switchback-int8", 1, {INT8, PER_BLOCK32, false, 1}, "per row with scales per block"},
    {"bf16", 0, {BF16, PER_TENSOR, false, 1}, "BF16 takes no scale"},
    {"bf16", 2, {F32, NO_SCALE, false, 1}, "no operand is F32"},
    {"halo2-int8", 2, {INT8, PER_BLOCK32, true, 1}, "a rotated operand takes one scale"},
    {"halo2-int8", 2, {INT8, NO_SCALE, true, 1}, "a rotated operand takes one scale"},
    {"halo0-int8", 2, {INT8, PER_TENSOR, false, 0}, "clip"},
    {"halo0-int8", 3, {INT8, PER_TENSOR, false, 1.5f}, "clip"},
    {"halo0-fp6", 5, {FP6_E3M2, PER_TENSOR, false, -0.75f}, "clip"},
    {"halo0-int8", 4, {INT8, PER_TENSOR, false, NAN}, "clip"},
    // Allowed: token rotation of dY alone, a scale per row of W where N survives, the two FP8 formats together, mixed clips.
    {"halo0-int8", 2, {INT8, PER_TENSOR, true, 1}, NULL},
    {"switchback-int8", 1, {INT8, PER_ROW, false, 1}, NULL},
    {"halo0-fp8", 4, {FP8_E5M2, PER_TENSOR, false, 1}, NULL},
    {"halo1-fp6", 2, {FP6_E2M3, PER_TENSOR, false, 0.5f}, NULL},
};

static void planted_case(void) {
    for (int i = 0; i < COUNT(planted); i++) {
        Recipe r = *recipe_find(planted[i].base);
        Opnd* operands[6] = {&r.fx, &r.fw, &r.ee, &r.ew, &r.ge, &r.gx};
        *operands[planted[i].operand] = planted[i].planted;
        const char* error = recipe_error(&r);
        bool right = planted[i].reason ? error && strstr(error, planted[i].reason) : !error;
        ok(right, "recipe.error %s operand %d: %s", planted[i].base, planted[i].operand, error ? error : "fine");
    }
}

// ---- looking up
typedef struct {
    const char *level, *dtype, *name;   // name NULL: a user_error
} Pick;

static const Pick picks[] = {
    {"bf16", NULL, "bf16"}, {"bf16", "auto", "bf16"}, {"bf16", "bf16", "bf16"}, {"halo2", "int8", "halo2-int8"},
    {"halo1", "fp6", "halo1-fp6"}, {"switchback", "fp8", "switchback-fp8"}, {"jetfire", "int8", "jetfire-int8"},
    {"halo0", "auto", "halo0-fp8"}, {"halo1", "auto", "halo1-fp6"}, {"halo2", "auto", "halo2-int8"}, {"haloi", "auto", "haloi-int8"},
    {"switchback", "auto", "switchback-int8"}, {"jetfire", "auto", "jetfire-int8"}, {"halo0", NULL, "halo0-fp8"},
    {"halo2", "bf16", NULL}, {"halo3", "int8", NULL}, {"halo3", "auto", NULL}, {"halo", "auto", NULL}, {"halo2", "", NULL},
    {"halo2", "int", NULL}, {"halo2-int8", "auto", "halo2-int8"},
    {"jetfire", "fp8", NULL}, {"switchback", "fp6", NULL}, {"bf16", "int8", NULL}, {"", "", NULL}, {"", "auto", NULL},
};

static void pick_or_exit(void* p) {
    const Pick* pick = (const Pick*)p;
    recipe_pick(pick->level, pick->dtype);
}

static void pick_case(void) {
    for (int i = 0; i < COUNT(picks); i++) {
        Pick p = picks[i];
        char name[64];
        snprintf(name, sizeof name, "recipe.pick %s %s", p.level, p.dtype ? p.dtype : "NULL");
        if (p.name) ok(recipe_pick(p.level, p.dtype) == recipe_find(p.name), "%s is %s", name, p.name);
        else expect_exit(pick_or_exit, &p, kExitUser, "halo2-int8, halo2-fp8, halo2-fp6", name);
    }
    char long_level[300];
    memset(long_level, 'x', sizeof long_level - 1);
    long_level[sizeof long_level - 1] = 0;
    Pick p = {long_level, "int8", NULL};
    expect_exit(pick_or_exit, &p, kExitUser, "no such recipe", "recipe.pick of a very long level");
    ok(!recipe_find("halo2") && !recipe_find("") && recipe_find("halo2-int8"), "recipe.find");
}

static const Case cases[] = {
    {"recipe.table", table_case},
    {"recipe.error", planted_case},
    {"recipe.pick", pick_case},
};

int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
