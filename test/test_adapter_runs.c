// Programs with an adapter: train writes PEFT's directory, and says how it is served; eval, generate, export --merge and train read it; runs resume bit for bit, and
// are the same bits on 1, 2 and 3 ranks; HUT leaves a model; what is not such an adapter is refused.
#include "program.h"

#include "../data/safetensors.h"
#include "backends.h"

// A model with weights, which no case changes.
static char* base_dir;
static void make_base(void) {
    make_inputs();
    if (base_dir) return;
    base_dir = scratch_path("base");
    char* flags = text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 4 --steps 2 --backend cpu --lr 1e-2 --out %s", model_dir,
                          data_path, base_dir);
    free(run_well(flags, "the base"));
    free(flags);
}

static char* adapter_flags(const char* out, const char* more) {
    return with_flags(text_of("train --model %s --data %s --chat none --seq 32 --steps 12 --warmup 0 --lr 2e-2 --backend cpu --seed 3 --adapter lora "
                              "--rank 4 --alpha 6 --out %s --log %s", base_dir, data_path, out, out), more);
}
static char* trained_adapter(const char* name, const char* more) {
    char *out = scratch_path(name), *flags = adapter_flags(out, more);
    free(run_well(flags, name));
    free(flags);
    return out;
}

// The last evaluation's.
static double loss_in(const char* text) {
    double loss = INFINITY;
    for (const char* at = text; (at = strstr(at, ": loss ")) != NULL; at++) loss = strtod(at + strlen(": loss "), NULL);
    return loss;
}
static double evaluated(const char* model, const char* more, const char* backend) {
    char* flags = text_of("eval --model %s --data %s --chat none --seq 32 --backend %s %s", model, val_path, backend, more);
    char* text = run_well(flags, "eval");
    double loss = loss_in(text);
    free(text);
    free(flags);
    return loss;
}

static const char kWrittenConfig[] =
    "{\n  \"peft_type\": \"LORA\",\n  \"task_type\": \"CAUSAL_LM\",\n  \"base_model_name_or_path\": \"%s\",\n  \"revision\": null,\n"
    "  \"inference_mode\": true,\n  \"r\": 4,\n  \"lora_alpha\": 6,\n  \"lora_dropout\": 0.1,\n"
    "  \"target_modules\": [\n    \"q_proj\",\n    \"k_proj\",\n    \"v_proj\",\n    \"o_proj\",\n    \"gate_proj\",\n    \"up_proj\",\n"
    "    \"down_proj\"\n  ],\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"use_rslora\": false,\n  \"use_dora\": false,\n"
    "  \"modules_to_save\": null,\n  \"init_lora_weights\": true,\n  \"rank_pattern\": {},\n  \"alpha_pattern\": {},\n"
    "  \"layers_to_transform\": null\n}";

static char* answer(const char* model, const char* more) {
    char* flags = text_of("generate --model %s %s --chat none --prompt '12+25=' --max-tokens 16 --backend cpu-f32", model, more);
    char* text = run_well(flags, "generate");
    free(flags);
    return text;
}

static void files_case(void) {
    make_base();
    char *val = text_of("--batch 4 --val %s --dropout 0.1", val_path), *out = scratch_path("files"), *flags = adapter_flags(out, val);
    char* text = run_well(flags, "train");
    ok(strstr(text, "LoRA of rank 4, scale 1.5, dropout 0.1, on q k v o gate up down") != NULL, "train says what it trains");
    double trained_loss = loss_in(text);
    free(text);
    ok(exists_in(out, "adapter_config.json") && exists_in(out, "adapter_model.safetensors") && exists_in(out, "tokenizer.json") &&
           exists_in(out, "generation_config.json") && !exists_in(out, "config.json") && !exists_in(out, "model.safetensors"),
       "an adapter's directory has its own files and the tokenizer's, and no model");
    char *base = realpath(base_dir, NULL), *config = text_at(out, "adapter_config.json"), *want = text_of(kWrittenConfig, base);
    ok(!strcmp(config, want), "adapter_config.json has the keys that PEFT and vLLM know, and no others%s", strcmp(config, want) ? config : "");
    char* path = path_join(out, "adapter_model.safetensors");
    SafeTensors* file = safetensors_open(path);
    const Tensor* b = safetensors_find(file, "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
    ok(safetensors_count(file) == 28 && b && b->rank == 2 && b->shape[0] == 32 && b->shape[1] == 4 && b->dtype == ST_BF16,
       "28 factors, of down_proj B (32, 4) in BF16");
    safetensors_close(file);
    char *with = text_of("--adapter-dir %s", out), *merged = scratch_path("merged");
    char* merge = text_of("export --model %s --adapter-dir %s --merge --backend cpu-f32 --out %s", base_dir, out, merged);
    free(run_well(merge, "export --merge"));
    double plain = evaluated(base_dir, "", "cpu"), beside = evaluated(base_dir, with, "cpu"), exact = evaluated(base_dir, with, "cpu-f32"),
           in_it = evaluated(merged, "", "cpu-f32");
    ok(beside == trained_loss, "eval with the adapter gives --val's loss, %.6f", beside);
    ok(fabs(beside - plain) > 0.05 && fabs(exact - in_it) < 2e-3 && fabs(exact - beside) < 0.02,
       "losses: base %.5f, adapter %.5f, in FP32 %.5f, merged %.5f", plain, beside, exact, in_it);
    char *told = answer(base_dir, with), *merged_told = answer(merged, ""), *base_told = answer(base_dir, "");
    ok(!strcmp(told, merged_told) && strcmp(told, base_told), "generate answers with the adapter as the merged model does, not as the base");
    char* onward = text_of("%s --steps 1 --lr 1e-30", with);
    char* next = trained_adapter("onward", onward);
    ok(same_files(out, next, "adapter_model.safetensors"), "train --adapter-dir goes on from the adapter: a step of lr 1e-30 writes it again");
    char* const texts[] = {val, out, flags, base, config, want, path, with, merged, merge, told, merged_told, base_told, onward, next};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

// ---- what export --merge writes

static float* tensor_floats(const SafeTensors* file, const char* name) {
    const Tensor* t = safetensors_find(file, name);
    check(t && t->rank == 2, "no matrix %s", name);
    float* x = (float*)host_alloc(sizeof(float) * t->shape[0] * t->shape[1]);
    tensor_read(t, 0, t->shape[0] * t->shape[1], F32, x);
    return x;
}

typedef struct {
    SafeTensors *base, *adapter, *merged;
    size_t values, once, twice;   // of adapted matrices: all, those that are not W + scale B A rounded once, and not with scale B A rounded before
} MergeCheck;

static void check_merged(MergeCheck* m, int layer, const char* module, double scale) {
    char weight[96], a_name[128], b_name[128];
    snprintf(weight, sizeof weight, "model.layers.%d.%s_proj.weight", layer, module);
    snprintf(a_name, sizeof a_name, "base_model.model.model.layers.%d.%s_proj.lora_A.weight", layer, module);
    snprintf(b_name, sizeof b_name, "base_model.model.model.layers.%d.%s_proj.lora_B.weight", layer, module);
    float *w = tensor_floats(m->base, weight), *got = tensor_floats(m->merged, weight);
    float *a = tensor_floats(m->adapter, a_name), *b = tensor_floats(m->adapter, b_name);
    const size_t *size = safetensors_find(m->base, weight)->shape, rank = safetensors_find(m->adapter, a_name)->shape[0];
    for (size_t i = 0; i < size[0] * size[1]; i++) {
        double change = 0;
        for (size_t r = 0; r < rank; r++) change += scale * b[i / size[1] * rank + r] * a[r * size[1] + i % size[1]];
        m->once += got[i] != f32_from_bf16(bf16_from_f32((float)(w[i] + change)));
        m->twice += got[i] != f32_from_bf16(bf16_from_f32(w[i] + f32_from_bf16(bf16_from_f32((float)change))));
    }
    m->values += size[0] * size[1];
    float* const all[] = {w, got, a, b};
    for (int i = 0; i < COUNT(all); i++) free(all[i]);
}

// Of an rsLoRA on a few matrices: its scale is read back from its files, and each of its matrices is W + scale B A rounded once, but for values
// that lie on a tie in FP32; the others are the base's.
static void merge_case(void) {
    make_base();
    char *out = scratch_path("rslora"), *more = text_of("--target q,v,down --rslora --val %s", val_path), *flags = adapter_flags(out, more);
    char *text = run_well(flags, "rsLoRA"), *with = text_of("--adapter-dir %s", out), *merged = scratch_path("rslora-merged");
    ok(strstr(text, "scale 3,") && evaluated(base_dir, with, "cpu") == loss_in(text), "eval with an rsLoRA gives --val's loss, %.6f", loss_in(text));
    char* merge = text_of("export --model %s --adapter-dir %s --merge --backend cpu --out %s", base_dir, out, merged);
    free(run_well(merge, "export --merge"));
    char *paths[] = {path_join(base_dir, "model.safetensors"), path_join(out, "adapter_model.safetensors"), path_join(merged, "model.safetensors")};
    MergeCheck m = {safetensors_open(paths[0]), safetensors_open(paths[1]), safetensors_open(paths[2]), 0, 0, 0};
    bool same = true;
    for (int layer = 0; layer < 2; layer++) {
        check_merged(&m, layer, "self_attn.q", 3);
        check_merged(&m, layer, "self_attn.v", 3);
        check_merged(&m, layer, "mlp.down", 3);
        char name[96];
        snprintf(name, sizeof name, "model.layers.%d.mlp.up_proj.weight", layer);
        float *up = tensor_floats(m.base, name), *merged_up = tensor_floats(m.merged, name);
        const size_t* size = safetensors_find(m.base, name)->shape;
        same = same && !memcmp(up, merged_up, sizeof(float) * size[0] * size[1]);
        free(up);
        free(merged_up);
    }
    ok(m.once * 1000 <= m.values && m.twice * 100 > m.values && same,
       "of %zu merged values %zu are not W + scale B A rounded once, %zu not with two roundings; up is the base's", m.values, m.once, m.twice);
    safetensors_close(m.base);
    safetensors_close(m.adapter);
    safetensors_close(m.merged);
    char* const texts[] = {out, more, flags, text, with, merged, merge, paths[0], paths[1], paths[2]};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

// The arguments that a run printed behind `words` and the program's name, to the end of the line.
static char* printed_arguments(const char* text, const char* words) {
    const char* at = strstr(text, words);
    if (!at) return host_strdup("");
    at += strlen(words);
    at += strspn(at, " ");
    at += strcspn(at, " \n");   // the program
    return text_of("%.*s", (int)strcspn(at, "\n"), at);
}

// An adapter on a GGUF file: what the run says to do before serving works, and names no base that vLLM could not read.
static void gguf_base_case(void) {
    make_base();
    char *file = scratch_path("base.gguf"), *export_flags = text_of("export --model %s --gguf %s", base_dir, file);
    free(run_well(export_flags, "the base as a GGUF file"));
    char *out = scratch_path("on gguf"), *flags = text_of("train --model %s --data %s --chat none --seq 32 --steps 3 --warmup 0 --lr 2e-2 --backend cpu "
                                                          "--adapter lora --rank 4 --out '%s'", file, data_path, out);
    char *text = run_well(flags, "an adapter on a GGUF file"), *merge = printed_arguments(text, "merge it:");
    char *merged = path_join(out, "merged"), *serve = text_of("vllm serve '%s'\n", merged);
    ok(strstr(text, serve) && !strstr(text, "--enable-lora"), "what is served is the merged model");
    ok(strstr(merge, " --merge ") != NULL, "the command that merges:%s", merge);
    free(run_well(merge, "that command"));
    ok(exists_in(merged, "config.json") && exists_in(merged, "model.safetensors") && exists_in(merged, "tokenizer.json"), "leaves a Hugging Face directory");
    char* talk = printed_arguments(text, "talk to it:");
    free(run_well(talk, "the command to talk to it"));
    char *beside = trained_adapter("on-folder", "--steps 1"), *again = adapter_flags(beside, "--steps 1 --overwrite"), *of_folder = run_well(again, "on a folder");
    ok(strstr(of_folder, " --enable-lora ") && !strstr(of_folder, "merge it:"), "an adapter on a folder is served beside its base");
    char* const texts[] = {file, export_flags, out, flags, text, merge, merged, serve, talk, beside, again, of_folder};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

static void resume_case(void) {
    make_base();
    const char* const kinds[] = {"--batch 4 --dropout 0.1 --save-every 5", "--batch 2 --accum 2 --recipe halo2-int8 --save-every 5 --target q,v",
                                 "--batch 4 --recipe halo1-fp6 --master bf16-sr --grad-dtype bf16 --state-dtype bf16 --save-every 5"};
    for (int i = 0; i < COUNT(kinds); i++) {
        char name[32];
        snprintf(name, sizeof name, "whole%d", i);
        char *whole = trained_adapter(name, kinds[i]), *part = scratch_path("part"), *copy = text_of("cp -r %s", whole);
        empty_dir(part);
        shell("rmdir", part);
        shell(copy, part);
        char* weights = path_join(part, "adapter_model.safetensors");
        char *more = text_of("%s --resume", kinds[i]), *flags = adapter_flags(part, more), *text = run_well(flags, "resume of a finished run");
        ok(strstr(text, "finished: ") && strstr(text, "holds the adapter that all 12 steps made") && !strstr(text, "\nstep "),
           "%s: --resume of a finished run says so and does nothing", kinds[i]);
        free(text);
        shell("rm", weights);
        text = run_well(flags, "resume");
        ok(strstr(text, "resumed from") && strstr(text, "step  11/12") && !strstr(text, "step  10/12") &&
               same_files(whole, part, "adapter_model.safetensors"), "%s: resumed bit for bit", kinds[i]);
        char* merge = text_of("export%s", strchr(flags, ' '));   // the run's own flags, but those of its progress
        char* log = strstr(merge, "--log ");
        memset(log, ' ', strlen("--log ") + strcspn(log + strlen("--log "), " "));
        char* save = strstr(merge, "--save-every 5");
        memset(save, ' ', strlen("--save-every 5"));
        file_remove(weights);
        free(text);
        text = run_well(merge, "export --resume");
        ok(strstr(text, "wrote the adapter") && exists_in(part, "adapter_model.safetensors"), "export --resume writes a checkpoint's adapter");
        free(text);
        char* const texts[] = {whole, part, copy, weights, more, flags, merge};
        for (int k = 0; k < COUNT(texts); k++) free(texts[k]);
    }
}

// Each folder is known for what it holds.
static void folders_case(void) {
    make_base();
    char *dir = trained_adapter("folder", ""), *verify = text_of("verify %s", dir), *text = run_well(verify, "verify an adapter");
    ok(strstr(text, "folder: a whole adapter: ") && strstr(text, "all of them finite"), "verify an adapter: %s", text);
    free(text);
    char* eval = text_of("eval --model %s --data %s --chat none --seq 32 --backend cpu", dir, val_path);
    run_refused(eval, "folder: an adapter, not a model|--adapter-dir", "an adapter as --model");
    char* weights = path_join(dir, "adapter_model.safetensors");
    size_t bytes;
    text = file_read(weights, &bytes);
    const uint32_t infinity = 0x7f800000;
    memcpy(text + bytes - sizeof infinity, &infinity, sizeof infinity);
    put_file(weights, text, bytes);
    Run r = run(verify);
    ok(r.code == 2 && strstr(r.out, "folder: DAMAGED: ") && strstr(r.out, "is not finite at value"), "verify finds an infinity: %s", r.out);
    char* answers = text_of("generate --model %s --adapter-dir %s --chat none --prompt 1 --max-tokens 4 --backend cpu", base_dir, dir);
    run_refused(answers, "folder: tensor \"base_model.|is not finite at row|the adapter itself is damaged", "a damaged adapter answers nothing");
    free_run(r);
    char* use = text_of("eval --model %s --data %s --chat none --seq 32 --backend cpu --adapter-dir %s", base_dir, val_path, dir);
    run_refused(use, "folder|lora_B.weight|not finite at row 31", "an adapter with an infinity");
    free(use);
    put_file(weights, text, bytes / 2);
    r = run(verify);
    ok(r.code == 2 && strstr(r.out, "folder: DAMAGED: "), "verify finds a file that is cut off: %s", r.out);
    free_run(r);
    char* const texts[] = {dir, verify, text, eval, weights, answers};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

// A run goes on only with the base that it was begun on, wherever that lies now.
static void other_base_case(void) {
    make_base();
    char *out = trained_adapter("on-base", "--batch 4 --save-every 5"), *weights = path_join(out, "adapter_model.safetensors"), *own = base_dir;
    char* changed = scratch_path("changed-base");
    char* train = text_of("train --model %s --data %s --chat none --seq 32 --batch 4 --steps 1 --backend cpu --lr 1e-2 --out %s", own, data_path,
                          changed);
    free(run_well(train, "another base"));
    file_remove(weights);
    base_dir = changed;
    char* flags = adapter_flags(out, "--batch 4 --save-every 5 --resume");
    run_refused(flags, "the adapter fits only the base model that it was begun on: name that one with --model", "--resume on another base");
    ok(!exists_in(out, "adapter_model.safetensors"), "nothing was written");
    base_dir = scratch_path("moved-base");
    char *move = text_of("cp -r %s", own), *again = adapter_flags(out, "--batch 4 --save-every 5 --resume");
    shell(move, base_dir);
    char* text = run_well(again, "--resume on a copy of the base");
    ok(strstr(text, "resumed from") != NULL, "a copy of the base is the base");
    free(text);
    free(base_dir);
    base_dir = own;
    char* const texts[] = {out, weights, changed, train, flags, move, again};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

static void ranks_case(void) {
    if (!has_mpi()) {
        skip("ranks: no MPI");
        return;
    }
    make_base();
    const char* const recipes[] = {"bf16 --dropout 0.1", "halo2-int8 --dropout 0.1", "halo1-fp6 --dropout 0.1", "halo2-int8 --adapter hut"};
    for (int r = 0; r < COUNT(recipes); r++) {
        char* alone = NULL;
        for (int ranks = 1; ranks <= 3; ranks++) {
            char* prefix = text_of("mpirun --allow-run-as-root --oversubscribe --mca btl_base_warn_component_unused 0 -np %d ", ranks);
            launcher = ranks > 1 ? prefix : "";
            char *name = text_of("ranks%d-%d", r, ranks), *out = scratch_path(name);
            char* more = text_of("--recipe %s --batch 1 --accum %d --zero 3 --steps 3 --seed %d", recipes[r], 6 / ranks, 3);
            char* flags = adapter_flags(out, more);
            free_run(run(flags));
            launcher = "";
            if (!alone) alone = out;
            else
                ok(same_files(alone, out, strstr(recipes[r], "hut") ? "model.safetensors" : "adapter_model.safetensors"),
                   "%s: %d ranks are one to the bit", recipes[r], ranks);
            char* const texts[] = {prefix, name, more, flags, out == alone ? NULL : out};
            for (int k = 0; k < COUNT(texts); k++) free(texts[k]);
        }
        free(alone);
    }
}

// The HiRA adapter in `dir` gives the merged model: W (.) (1 + B A) rounded once, but for values that lie on a tie in FP32. Its B holds the scale.
static void check_hira(const char* dir, const char* merged_dir) {
    char* paths[] = {path_join(base_dir, "model.safetensors"), path_join(dir, "adapter_model.safetensors"),
                     path_join(merged_dir, "model.safetensors")};
    SafeTensors *base = safetensors_open(paths[0]), *adapter = safetensors_open(paths[1]), *merged = safetensors_open(paths[2]);
    static const char* const modules[] = {"self_attn.q", "self_attn.k", "mlp.up", "mlp.down"};
    size_t values = 0, others = 0, changed = 0;
    for (int m = 0; m < COUNT(modules); m++) {
        char weight[96], a_name[128], b_name[128];
        snprintf(weight, sizeof weight, "model.layers.1.%s_proj.weight", modules[m]);
        snprintf(a_name, sizeof a_name, "base_model.model.model.layers.1.%s_proj.hira_A", modules[m]);
        snprintf(b_name, sizeof b_name, "base_model.model.model.layers.1.%s_proj.hira_B", modules[m]);
        float *w = tensor_floats(base, weight), *got = tensor_floats(merged, weight);
        float *a = tensor_floats(adapter, a_name), *b = tensor_floats(adapter, b_name);
        const size_t *size = safetensors_find(base, weight)->shape, rank = safetensors_find(adapter, a_name)->shape[0];
        for (size_t i = 0; i < size[0] * size[1]; i++) {
            double sum = 1;
            for (size_t r = 0; r < rank; r++) sum += (double)b[i / size[1] * rank + r] * a[r * size[1] + i % size[1]];
            others += got[i] != f32_from_bf16(bf16_from_f32((float)(w[i] * sum)));
            changed += got[i] != w[i];
        }
        values += size[0] * size[1];
        float* const all[] = {w, got, a, b};
        for (int i = 0; i < COUNT(all); i++) free(all[i]);
    }
    ok(safetensors_count(adapter) == 28 && others * 1000 <= values && changed * 2 > values,
       "HiRA's form of HUT: of %zu values %zu are not the merged model's, %zu not the base's", values, others, changed);
    safetensors_close(base);
    safetensors_close(adapter);
    safetensors_close(merged);
    for (int i = 0; i < COUNT(paths); i++) free(paths[i]);
}

// HUT leaves a whole model, W (.) (1 + scale B A), in the format of the base (BF16), and its factors as PEFT's HiRA.
static void hut_case(void) {
    make_base();
    char* out = scratch_path("hut");
    char* flags = text_of("train --model %s --data %s --val %s --chat none --seq 32 --steps 12 --warmup 0 --lr 5e-2 --backend cpu-f32 --adapter hut "
                          "--rank 4 --alpha 20 --batch 4 --save-every 5 --out %s", base_dir, data_path, val_path, out);
    char* text = run_well(flags, "train --adapter hut");
    double plain = evaluated(base_dir, "", "cpu-f32"), trained_loss = loss_in(text), merged = evaluated(out, "", "cpu-f32");
    ok(strstr(text, "HUT of rank 4") && fabs(plain - trained_loss) > 0.02 && fabs(merged - trained_loss) < 1e-3,
       "HUT: the base's loss %.6f, after training %.6f, of the model written %.6f", plain, trained_loss, merged);
    free(text);
    char *hira = path_join(out, "hira"), *config = text_at(hira, "adapter_config.json");
    ok(strstr(config, "\"HIRA\"") && strstr(config, "\"r\": 4") && strstr(config, base_dir) && !strstr(config, "alpha") &&
           exists_in(hira, "tokenizer.json"), "HiRA's configuration");
    check_hira(hira, out);
    char *first = scratch_path("hut-first"), *model = path_join(out, "model.safetensors"), *kept = path_join(first, "model.safetensors");
    empty_dir(first);
    file_rename(model, kept);
    char* resuming = text_of("%s --resume", flags);
    free(run_well(resuming, "HUT resumed"));
    ok(same_files(out, first, "model.safetensors"), "HUT: the resumed run's model is bit for bit the same");
    char* other = text_of("train --model %s --data %s --chat none --seq 32 --steps 1 --backend cpu --overwrite --out %s", base_dir, data_path, first);
    char *in_first = path_join(first, "hira"), *move = text_of("cp -r %s", hira);
    shell(move, in_first);
    free(run_well(other, "another model in its place"));
    ok(exists_in(out, "hira") && exists_in(first, "model.safetensors") && !exists_in(in_first, "adapter_config.json"),
       "no HiRA of one model is beside another");
    char* const texts[] = {out, flags, first, model, kept, resuming, hira, config, other, in_first, move};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

// adapter_config.json with one text replaced.
static void put_changed(const char* dir, const char* config, const char* from, const char* to) {
    const char* at = strstr(config, from);
    check(at, "adapter_config.json: no %s", from);
    char* text = text_of("%.*s%s%s", (int)(at - config), config, to, at + strlen(from));
    put_text(dir, "adapter_config.json", text);
    free(text);
}

// ---- going on from an adapter

// A run from --adapter-dir has that adapter's rank, scale and matrices, and only these.
static void onward_case(void) {
    make_base();
    char *from = trained_adapter("from", "--alpha 0.1 --target q,v"), *config = text_at(from, "adapter_config.json");
    ok(strstr(config, "\"lora_alpha\": 0.1,") != NULL, "lora_alpha is written with the digits that it needs: %s", config);
    char* out = scratch_path("going-on");
    char* plain = text_of("train --model %s --data %s --chat none --seq 32 --batch 4 --steps 12 --warmup 0 --lr 2e-2 --backend cpu --seed 3 "
                          "--save-every 5 --adapter-dir %s --out %s", base_dir, data_path, from, out);
    const struct {
        const char *more, *words;
    } others[] = {{"--rank 8", "--rank 8|has 4"}, {"--alpha 3", "--alpha 3|has 0.1"}, {"--target q", "--target q|has q,v"}, {"--rslora", "--rslora|has no"}};
    for (int i = 0; i < COUNT(others); i++) {
        char* line = text_of("%s %s", plain, others[i].more);
        run_refused(line, others[i].words, others[i].more);
        free(line);
    }
    char* text = run_well(plain, "train --adapter-dir");
    ok(strstr(text, "LoRA of rank 4, scale 0.025, dropout 0, on q v") != NULL, "what is trained on is the adapter's");
    char *whole = scratch_path("went-on"), *copy = text_of("cp -r %s", out), *weights = path_join(out, "adapter_model.safetensors");
    shell(copy, whole);
    file_remove(weights);
    char* again = text_of("%s --resume", plain);
    put_changed(from, config, "\"lora_alpha\": 0.1", "\"lora_alpha\": 0.2");
    run_refused(again, "saved with alpha = 0.1", "--resume with an adapter of another scale");
    put_changed(from, config, "\"q_proj\",", "");
    run_refused(again, "unexpected tensor|q_proj", "--resume with another adapter");
    put_text(from, "adapter_config.json", config);
    free(run_well(again, "--resume of a run from --adapter-dir"));
    ok(same_files(whole, out, "adapter_model.safetensors"), "a run from --adapter-dir resumes bit for bit");
    char* const texts[] = {from, config, out, plain, text, whole, copy, weights, again};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

// A run that was killed while it moved a new adapter to its place: the next command that needs the folder goes on with the move.
static void interrupted_case(void) {
    make_base();
    char *dir = trained_adapter("interrupted", ""), *config = text_at(dir, "adapter_config.json");
    char *newer = trained_adapter("newer", "--seed 4 --alpha 3"), *complete = path_join(dir, ".model-complete");
    ok(!exists_in(dir, ".model-being-written") && !exists_in(newer, ".model-complete"), "nothing is left over");
    char *copy = text_of("cp -r %s", newer), *weights = path_join(dir, "adapter_model.safetensors");
    shell(copy, complete);
    put_text(complete, ".files", "tokenizer.json\nadapter_config.json\nadapter_model.safetensors\n");
    file_remove(weights);
    char* use = text_of("eval --model %s --data %s --chat none --seq 32 --backend cpu --adapter-dir", base_dir, val_path);
    char *moved = text_of("%s %s", use, dir), *whole = text_of("%s %s", use, newer);
    char *a = run_well(moved, "eval of what was interrupted"), *b = run_well(whole, "eval of the same adapter");
    const char *loss = strstr(a, "loss "), *same = strstr(b, "loss ");
    ok(loss && same && !strncmp(loss, same, strcspn(same, "\n")), "the adapter that was complete is the one that answers");
    ok(same_files(newer, dir, "adapter_model.safetensors") && same_files(newer, dir, "adapter_config.json") && !exists_in(dir, ".model-complete"),
       "it is in its place");
    char* partial = path_join(dir, ".model-being-written");   // of a run that was killed before all was written
    shell(copy, partial);
    char* again = trained_adapter("interrupted", "--overwrite");
    ok(!exists_in(dir, ".model-being-written") && exists_in(dir, "adapter_model.safetensors"), "the next run writes over an unfinished one");
    char* now = text_at(dir, "adapter_config.json");
    ok(!strcmp(now, config), "and leaves its own adapter");
    char* const texts[] = {dir, config, newer, complete, copy, weights, use, moved, whole, a, b, partial, again, now};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

// Models of the same sizes take each other's adapters: the name of another one is said, without ending the command.
static void names_case(void) {
    make_base();
    char *dir = trained_adapter("named", ""), *config = text_at(dir, "adapter_config.json"), *other = scratch_path("base-of-another-name");
    char *copy = text_of("cp -r %s", base_dir);
    shell(copy, other);
    char* line = text_of("eval --model %s --data %s --chat none --seq 32 --backend cpu --adapter-dir %s", other, val_path, dir);
    Run r = run(line);
    ok(r.code == 0 && strstr(r.err, "note: the adapter ") && strstr(r.err, "/base;") && strstr(r.err, "base-of-another-name"), "another name: %s", r.err);
    free_run(r);
    put_changed(dir, config, base_dir, "org/base-of-another-name");
    free(run_well(line, "the same name elsewhere"));
    put_changed(dir, config, base_dir, "");
    free(run_well(line, "no name"));
    char *cache = scratch_path("cache"), *refs = path_join(cache, "models--org--tiny/refs"), *snapshot = path_join(cache, "models--org--tiny/snapshots/01ab");
    empty_dir(refs);
    empty_dir(snapshot);
    put_text(refs, "main", "01ab");
    char *fill = text_of("cp -r %s/.", base_dir), *out = scratch_path("of-the-hub"), *own = base_dir;
    shell(fill, snapshot);
    setenv("HF_HUB_CACHE", cache, 1);
    base_dir = (char*)"org/tiny/";
    char *train = adapter_flags(out, ""), *text = run_well(train, "a base of the hub"), *written = text_at(out, "adapter_config.json");
    base_dir = own;
    unsetenv("HF_HUB_CACHE");
    ok(strstr(written, "\"base_model_name_or_path\": \"org/tiny\"") && strstr(text, "generate --model org/tiny ") &&
       strstr(text, "vllm serve org/tiny "), "a base that was named as the hub does keeps that name: %s", written);
    char* const texts[] = {dir, config, other, copy, line, cache, refs, snapshot, fill, out, train, text, written};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

// ---- what is refused

static void refused_case(void) {
    make_base();
    char *dir = trained_adapter("good", "--target q,v"), *config = text_at(dir, "adapter_config.json");
    char* eval = text_of("eval --model %s --data %s --chat none --seq 32 --backend cpu --adapter-dir %s", base_dir, val_path, dir);
    const struct {
        const char *from, *to, *words;
    } changes[] = {
        {"\"LORA\"", "\"IA3\"", "adapter_config.json|IA3"},
        {"\"use_dora\": false", "\"use_dora\": true", "use_dora"},
        {"\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]", "modules_to_save"},
        {"\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 8}", "rank_pattern"},
        {"\"bias\": \"none\"", "\"bias\": \"all\"", "bias"},
        {"\"init_lora_weights\": true", "\"init_lora_weights\": \"pissa\"", "init_lora_weights|pissa"},
        {"\"layers_to_transform\": null", "\"layers_to_transform\": [0]", "layers_to_transform"},
        {"\"layers_to_transform\": null", "\"layers_to_transform\": 0", "layers_to_transform"},   // PEFT's way to say: the first layer
        {"\"use_dora\": false", "\"use_bdlora\": {\"nblocks\": 2}", "use_bdlora"},
        {"\"use_dora\": false", "\"arrow_config\": {\"top_k\": 2}", "arrow_config"},
        {"\"use_dora\": false", "\"kasa_config\": {\"beta\": 0.1}", "kasa_config"},
        {"\"use_dora\": false", "\"monteclora_config\": {\"num_samples\": 2}", "monteclora_config"},
        {"\"lora_alpha\": 6", "\"lora_alpha\": 1e40", "lora_alpha|scale"},
        {"\"lora_alpha\": 6", "\"lora_alpha\": 1e-50", "lora_alpha|scale"},
        {"\"r\": 4", "\"r\": 8", "lora_A|shape|[8, 32]"},
        {"\"r\": 4,", "", "\"r\" is missing"},
        {"\"lora_alpha\": 6", "\"lora_alpha\": 1e39", "lora_alpha|1e+39"},
        {"\"v_proj\"", "\"k_proj\"", "k_proj|missing"},
        {"\"q_proj\",", "", "unexpected tensor|q_proj"},
        {"\"v_proj\"", "\"c_attn\"", "target_modules|c_attn"},
        {"\"v_proj\"", "\"model.layers.0.self_attn.v_proj\"", "target_modules|layers.0"},
    };
    for (int i = 0; i < COUNT(changes); i++) {
        put_changed(dir, config, changes[i].from, changes[i].to);
        run_refused(eval, changes[i].words, changes[i].words);
    }
    put_changed(dir, config, "\"v_proj\"", "\"self_attn.v_proj\"");
    free(run_well(eval, "a module named with its parent"));
    char *weights = path_join(dir, "adapter_model.safetensors"), *config_path = path_join(dir, "adapter_config.json");
    file_remove(weights);
    run_refused(eval, "adapter_model.safetensors", "no weights");
    file_remove(config_path);
    run_refused(eval, "adapter_config.json", "no configuration");
    const struct {
        const char *more, *words;
    } flags[] = {{"--target q,x", "--target|'x'"}, {"--target ''", "--target"}, {"--rank 0", "--rank"}, {"--alpha 0", "--alpha"},
                 {"--alpha 1e40", "--alpha|scale"}, {"--alpha 1e-50", "--alpha|scale"}, {"--alpha 1e-50 --adapter hut", "--alpha|scale"},
                 {"--dropout 1", "--dropout"}, {"--dropout 0.99999999", "--dropout|every value"}, {"--dropout 0.999995", "--dropout|every value"},
                 {"--adapter hut --dropout 0.1", "--dropout|HUT"}, {"--quant-stats 1", "--quant-stats"}};
    for (int i = 0; i < COUNT(flags); i++) {
        char *out = scratch_path("refused"), *line = adapter_flags(out, flags[i].more);
        run_refused(line, flags[i].words, flags[i].more);
        free(line);
        free(out);
    }
    // A flag of an adapter and no adapter: all weights would be trained.
    const char* const alone[] = {"--rank 16", "--alpha 32", "--rslora", "--dropout 0.1", "--target q,v", "--rank 4 --adapter none"};
    char *toml = scratch_path("no-adapter.toml"), *printed = NULL;
    for (int i = 0; i < COUNT(alone); i++) {
        char *line = text_of("train --model %s --data %s %s", base_dir, data_path, alone[i]), *words = text_of("%.5s|--adapter lora", alone[i]);
        run_refused(line, words, alone[i]);
        free(words);
        free(line);
    }
    put_file(toml, "rank = 16\n", 10);
    char *from_file = text_of("train --model %s --data %s --config %s --print-config", base_dir, data_path, toml);
    run_refused(from_file, "--rank|--adapter lora", "a file with a rank and no adapter");
    printed = run_well("train --model a --data b --print-config", "--print-config");
    put_file(toml, printed, strlen(printed));
    free(run_well(from_file, "a printed file, which has every flag"));
    char* merge = text_of("export --model %s --merge --out %s", base_dir, dir);
    run_refused(merge, "--merge|--adapter-dir", "merging nothing");
    char* const texts[] = {dir, config, eval, weights, config_path, merge, toml, printed, from_file};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

static const Case kCases[] = {{"files", files_case}, {"merge", merge_case}, {"gguf_base", gguf_base_case}, {"resume", resume_case},
                              {"folders", folders_case}, {"other_base", other_base_case}, {"ranks", ranks_case}, {"hut", hut_case},
                              {"onward", onward_case}, {"names", names_case},
                              {"interrupted", interrupted_case}, {"refused", refused_case}};

int main(int argc, char** argv) { return program_main("test_adapter_runs", kCases, COUNT(kCases), argc, argv); }
