// UTF-8 by the byte: where a character ends, and whether text breaks off inside one (Unicode 15, table 3-7).
#ifndef DATA_UTF8_H
#define DATA_UTF8_H

#include "../halo/base.h"

// Bytes of the well-formed character at s[0..bytes), 1 to 4; 0 if there is none (overlong forms and surrogates included);
// -1 if the text ends inside a character that is well-formed so far.
static inline int utf8_char_bytes(const char* s, size_t bytes) {
    const unsigned char* p = (const unsigned char*)s;
    if (bytes == 0) return 0;
    if (p[0] < 0x80) return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4) return 0;
    int length = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    unsigned char low = p[0] == 0xe0 ? 0xa0 : p[0] == 0xf0 ? 0x90 : 0x80;    // the second byte's range keeps out overlong
    unsigned char high = p[0] == 0xed ? 0x9f : p[0] == 0xf4 ? 0x8f : 0xbf;   // forms, surrogates and values above 10FFFF
    for (int i = 1; i < length; i++) {
        if ((size_t)i == bytes) return -1;
        if (p[i] < low || p[i] > high) return 0;
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

// The code point of a well-formed character of `length` bytes.
static inline uint32_t utf8_code_point(const char* s, int length) {
    const unsigned char* p = (const unsigned char*)s;
    if (length == 1) return p[0];
    uint32_t c = p[0] & (0x7fu >> length);
    for (int i = 1; i < length; i++) c = c << 6 | (p[i] & 0x3fu);
    return c;
}

// Bytes of the well-formed text that s[0..bytes) starts with.
static inline size_t utf8_valid_bytes(const char* s, size_t bytes) {
    size_t at = 0;
    while (at < bytes) {
        uint64_t eight;
        if (bytes - at >= sizeof eight) {
            memcpy(&eight, s + at, sizeof eight);
            if (!(eight & 0x8080808080808080ull)) {
                at += sizeof eight;
                continue;
            }
        }
        int length = utf8_char_bytes(s + at, bytes - at);
        if (length <= 0) break;
        at += (size_t)length;
    }
    return at;
}

// Bytes at the end of s[0..bytes) that begin a character and do not finish it: 0 to 3.
static inline int utf8_cut_bytes(const char* s, size_t bytes) {
    for (int tail = 1; tail <= 3 && (size_t)tail <= bytes; tail++)
        if (utf8_char_bytes(s + bytes - tail, (size_t)tail) == -1) return tail;
    return 0;
}

// Unicode White_Space.
static inline bool utf8_is_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
           c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

#endif
