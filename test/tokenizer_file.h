// A tokenizer.json that one can read: token b is the byte b, and the special tokens stand behind the bytes.
#ifndef TEST_TOKENIZER_FILE_H
#define TEST_TOKENIZER_FILE_H

#include "test.h"

// special[i] gets the id 256 + first + i; with_bos: the post-processor puts special[0] before a text.
static void write_byte_tokenizer(const char* path, const char* const* special, int count, int first, bool with_bos) {
    FILE* f = fopen(path, "wb");
    check(f, "%s: not written", path);
    fputs("{\"version\":\"1.0\",\"added_tokens\":[", f);
    for (int i = 0; i < count; i++)
        fprintf(f, "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                "\"normalized\":false,\"special\":true}", i ? "," : "", 256 + first + i, special[i]);
    fputs("],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
          "\"use_regex\":true},\"post_processor\":", f);
    const char* bos = special[0];
    if (with_bos)
        fprintf(f, "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"%s\",\"type_id\":0}},"
                "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},"
                "{\"Sequence\":{\"id\":\"B\",\"type_id\":1}}],\"special_tokens\":"
                "{\"%s\":{\"id\":\"%s\",\"ids\":[%d],\"tokens\":[\"%s\"]}}}", bos, bos, bos, 256 + first, bos);
    else
        fputs("null", f);
    fputs(",\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
          "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
          "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{", f);
    for (int b = 0, moved = 0; b < 256; b++) {   // GPT-2's map of bytes to characters
        bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        fprintf(f, "%s\"\\u%04x\":%d", b ? "," : "", itself ? b : 256 + moved++, b);
    }
    fputs("},\"merges\":[]}}", f);
    check(fclose(f) == 0, "%s: not written", path);
}

#endif
