// The table of training schemes, and the rules that a row has to obey.
#include "recipe.h"

// ---- how an operand is written in the table; A is X, W or dY, and H acts on the features of X and W, on the tokens of dY
#define CLIP_INT8 1.0f
#define CLIP_FP8_E4M3 1.0f
#define CLIP_FP6_E3M2 0.75f   // the paper clips in FP6

#define Q(fmt)       {fmt, PER_TENSOR, false, CLIP_##fmt}    // (A)_Q
#define HQ(fmt)      {fmt, PER_TENSOR, true, CLIP_##fmt}     // (A H)_Q or (H A)_Q
#define ROWQ(fmt)    {fmt, PER_ROW, false, CLIP_##fmt}       // one scale a row
#define BLOCKQ(fmt)  {fmt, PER_BLOCK32, false, CLIP_##fmt}   // one scale a block of 32 x 32
#define CAST(fmt)    {fmt, NO_SCALE, false, 1.0f}            // as it is

// The first row of a level is in the format that the level is meant for, which --dtype auto picks.
static const Recipe kRecipes[] = {
    //                  F: X            W               E: dY           W               G: dY           X
    {"bf16",            CAST(BF16),     CAST(BF16),     CAST(BF16),     CAST(BF16),     CAST(BF16),     CAST(BF16)},

    {"halo0-fp8",       Q(FP8_E4M3),    Q(FP8_E4M3),    Q(FP8_E4M3),    Q(FP8_E4M3),    Q(FP8_E4M3),    Q(FP8_E4M3)},
    {"halo0-int8",      Q(INT8),        Q(INT8),        Q(INT8),        Q(INT8),        Q(INT8),        Q(INT8)},
    {"halo0-fp6",       Q(FP6_E3M2),    Q(FP6_E3M2),    Q(FP6_E3M2),    Q(FP6_E3M2),    Q(FP6_E3M2),    Q(FP6_E3M2)},

    {"halo1-fp6",       HQ(FP6_E3M2),   HQ(FP6_E3M2),   Q(FP6_E3M2),    HQ(FP6_E3M2),   Q(FP6_E3M2),    HQ(FP6_E3M2)},
    {"halo1-int8",      HQ(INT8),       HQ(INT8),       Q(INT8),        HQ(INT8),       Q(INT8),        HQ(INT8)},
    {"halo1-fp8",       HQ(FP8_E4M3),   HQ(FP8_E4M3),   Q(FP8_E4M3),    HQ(FP8_E4M3),   Q(FP8_E4M3),    HQ(FP8_E4M3)},

    {"halo2-int8",      HQ(INT8),       HQ(INT8),       HQ(INT8),       HQ(INT8),       Q(INT8),        HQ(INT8)},
    {"halo2-fp8",       HQ(FP8_E4M3),   HQ(FP8_E4M3),   HQ(FP8_E4M3),   HQ(FP8_E4M3),   Q(FP8_E4M3),    HQ(FP8_E4M3)},
    {"halo2-fp6",       HQ(FP6_E3M2),   HQ(FP6_E3M2),   HQ(FP6_E3M2),   HQ(FP6_E3M2),   Q(FP6_E3M2),    HQ(FP6_E3M2)},

    // An upper bound of speed: no scales, so that the trained weights mean nothing.
    {"haloi-int8",      CAST(INT8),     CAST(INT8),     CAST(INT8),     CAST(INT8),     CAST(INT8),     CAST(INT8)},
    {"haloi-fp8",       CAST(FP8_E4M3), CAST(FP8_E4M3), CAST(FP8_E4M3), CAST(FP8_E4M3), CAST(FP8_E4M3), CAST(FP8_E4M3)},
    {"haloi-fp6",       CAST(FP6_E3M2), CAST(FP6_E3M2), CAST(FP6_E3M2), CAST(FP6_E3M2), CAST(FP6_E3M2), CAST(FP6_E3M2)},

    // SwitchBack (Wortsman et al. 2023): the weight gradient stays in BF16.
    {"switchback-int8", ROWQ(INT8),     Q(INT8),        ROWQ(INT8),     Q(INT8),        CAST(BF16),     CAST(BF16)},
    {"switchback-fp8",  ROWQ(FP8_E4M3), Q(FP8_E4M3),    ROWQ(FP8_E4M3), Q(FP8_E4M3),    CAST(BF16),     CAST(BF16)},

    // Jetfire (Xi et al. 2024).
    {"jetfire-int8",    BLOCKQ(INT8),   BLOCKQ(INT8),   BLOCKQ(INT8),   BLOCKQ(INT8),   BLOCKQ(INT8),   BLOCKQ(INT8)},
};
enum { kRecipeCount = sizeof kRecipes / sizeof kRecipes[0] };

// ---- the rules

static const char* operand_error(Opnd o) {
    if (o.fmt == F32) return "no operand is F32";
    if (o.fmt == BF16 && o.gran != NO_SCALE) return "BF16 takes no scale";
    if (o.rotate && o.gran != PER_TENSOR) return "a rotated operand takes one scale";
    if (!(o.clip > 0 && o.clip <= 1)) return "clip is outside (0, 1]";
    return NULL;
}

// What every product asks of its two operands.
static const char* product_error(Opnd a, Opnd b) {
    const char* error = operand_error(a);
    if (!error) error = operand_error(b);
    if (error) return error;
    if ((a.fmt == BF16) != (b.fmt == BF16)) return "no product takes BF16 with 8 bits";
    if ((a.fmt == INT8) != (b.fmt == INT8)) return "no product takes INT8 with FP8 or FP6";
    if ((a.gran == PER_BLOCK32 && b.gran == PER_ROW) || (a.gran == PER_ROW && b.gran == PER_BLOCK32))
        return "no product takes scales per row with scales per block";
    return NULL;
}

const char* recipe_error(const Recipe* r) {
    const char* error = product_error(r->fx, r->fw);
    if (!error) error = product_error(r->ee, r->ew);
    if (!error) error = product_error(r->ge, r->gx);
    if (error) return error;
    // F contracts the features K, which rotate in X and W.
    if (r->fx.rotate != r->fw.rotate) return "F: X and W rotate together or not at all";
    // E contracts N, which never rotates: the tokens of dY and the features of W both survive and are rotated back.
    if (r->ew.gran == PER_ROW) return "E: a scale per row of W runs along the contracted axis";
    // G contracts the tokens M, which rotate in dY but never in X; X's features survive and are rotated back.
    if (r->ge.rotate) return "G: the rotation of dY's tokens has no counterpart in X";
    if (r->ge.gran == PER_ROW || r->gx.gran == PER_ROW) return "G: a scale per row runs along the contracted axis";
    return NULL;
}

// ---- looking up

const Recipe* recipe_table(int* count) {
    for (int i = 0; i < kRecipeCount; i++) {
        const char* error = recipe_error(&kRecipes[i]);
        check(!error, "recipe %s: %s", kRecipes[i].name, error);
    }
    *count = kRecipeCount;
    return kRecipes;
}

const Recipe* recipe_find(const char* name) {
    int count;
    const Recipe* table = recipe_table(&count);
    for (int i = 0; i < count; i++)
        if (!strcmp(table[i].name, name)) return &table[i];
    return NULL;
}

// Is this row of the given level, and in the given dtype (NULL: any)?
static bool is_row(const Recipe* r, const char* level, const char* dtype) {
    size_t n = strlen(level);
    if (strncmp(r->name, level, n)) return false;
    const char* rest = r->name + n;   // "" or "-int8"
    if (!*rest) return !dtype || !strcmp(dtype, r->name);
    return *rest == '-' && (!dtype || !strcmp(dtype, rest + 1));
}

const Recipe* recipe_pick(const char* level, const char* dtype) {
    int count;
    const Recipe* table = recipe_table(&count);
    char names[512] = "";
    for (int i = 0; i < count; i++) {
        if (is_row(&table[i], level, dtype && strcmp(dtype, "auto") ? dtype : NULL)) return &table[i];
        size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, "%s%s", i ? ", " : "", table[i].name);
    }
    user_error("--level %s --dtype %s: no such recipe; level-dtype must be one of %s", level, dtype ? dtype : "auto", names);
}
