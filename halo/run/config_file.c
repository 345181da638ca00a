// Files of flags; see config_file.h.
#include "config_file.h"

#include "../../data/toml.h"

void read_config(const char* path, void (*take)(void* self, const Setting* setting), void* self) {
    static const SettingType kTypes[] = {SETTING_STRING, SETTING_INTEGER, SETTING_FLOAT, SETTING_BOOLEAN, SETTING_STRINGS};   // in the order of TomlType
    Toml toml = toml_read(path);
    for (int i = 0; i < toml.count; i++) {
        const TomlEntry* e = &toml.entries[i];
        char where[512];
        snprintf(where, sizeof where, "%.480s:%d", path, e->line);
        Setting setting = {e->key, e->value, kTypes[e->type], where};
        take(self, &setting);
    }
    toml_free(&toml);
}

void note_config(ModelFiles* files, const Options* o) {
    char* text;
    size_t bytes;
    FILE* out = open_memstream(&text, &bytes);
    check(out, "train_llama3.toml: no memory");
    options_write(out, o, TRAIN);
    check(fclose(out) == 0, "train_llama3.toml: no memory");
    model_files_set(files, "train_llama3.toml", text, bytes);
    free(text);
}
