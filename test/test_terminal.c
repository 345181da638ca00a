// What a terminal shows: the live line's text at every width, and the program in terminals of 80 and 200 columns, read off a small
// emulation of their screens.
#include "../halo/run/clock.h"
#include "../halo/run/status.h"
#include "program.h"

#include <math.h>

// ---- a terminal's screen: lines of one-byte characters (others count as '*'), what is erased or written over, and escapes

enum { kScreenLines = 2000, kScreenColumns = 240 };
typedef struct {
    char text[kScreenLines][kScreenColumns + 1];
    int columns, line, column;
    int wraps, others, colors;   // lines that were too long; characters beyond ASCII; changes of colour
} Screen;

static void screen_put(Screen* s, char c) {
    if (s->column == s->columns) {
        s->wraps++;
        s->line++;
        s->column = 0;
    }
    check(s->line < kScreenLines, "more than %d lines", (int)kScreenLines);
    char* line = s->text[s->line];
    while ((int)strlen(line) < s->column + 1) strcat(line, " ");
    line[s->column++] = c;
}

static void screen_feed(Screen* s, const char* bytes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        unsigned char c = (unsigned char)bytes[i];
        if (c == 033) {
            while (i < count && !(bytes[i] >= '@' && bytes[i] != '[')) i++;
            if (bytes[i] == 'K') s->text[s->line][min_int(s->column, (int)strlen(s->text[s->line]))] = 0;
            s->colors += bytes[i] == 'm';
        } else if (c == '\r') {
            s->column = 0;
        } else if (c == '\n') {
            s->line++;
            s->column = 0;
        } else if ((c & 0xc0) != 0x80) {
            s->others += c >= 0x80;
            screen_put(s, c < 0x80 ? (char)c : '*');
        }
    }
}

// The number of lines that begin with `words`.
static int lines_with(const Screen* s, const char* words) {
    int n = 0;
    for (int i = 0; i < kScreenLines; i++) n += !strncmp(s->text[i], words, strlen(words));
    return n;
}

static void emulation_case(void) {
    Screen* s = (Screen*)host_alloc(sizeof(Screen));
    s->columns = 20;
    const char text[] = "one\r\nlong status line\r\033[Kprinted\r\nshort\rS\033[32m\xe2\x96\x88\033[0m";
    screen_feed(s, text, sizeof text - 1);
    ok(!strcmp(s->text[0], "one") && !strcmp(s->text[1], "printed") && !strcmp(s->text[2], "S*ort") && s->colors == 2 && s->wraps == 0,
       "the emulation: '%s' '%s' '%s'", s->text[0], s->text[1], s->text[2]);
    screen_feed(s, "0123456789012345678901234", 25);
    ok(s->wraps == 1, "a line that is too long is counted");
    free(s);
}

// ---- the text

static const StatusNumbers kMiddle = {620, 1600, 0.5423, 3.1e-5, 12345, 4800, 0.61, 62.1 * (1 << 30), 79.6 * (1 << 30)};
static const ProgressWork kNoWork = {NULL, 0, 0};
static const ProgressPlace kPlace = {621, 12, "backward", NULL};

static int width_of(const char* text) {
    Screen* s = (Screen*)host_alloc(sizeof(Screen));
    s->columns = kScreenColumns;
    screen_feed(s, text, strlen(text));
    int width = (int)strlen(s->text[0]);
    free(s);
    return width;
}

static void widths_case(void) {
    const ProgressWork works[] = {kNoWork, {"evaluating", 12, 36}, {"reading data", 0, 0}};
    int wide = 0, empty = 0, runs = 0, without_loss = 0;
    for (int columns = 20; columns <= 240; columns++)
        for (int w = 0; w < COUNT(works); w++)
            for (int kind = 0; kind < 4; kind++, runs++) {
                char text[kStatusBytes];
                StatusLook look = {columns, kind & 1, kind & 2};
                status_text(&kMiddle, works[w], kPlace, look, text);
                wide += width_of(text) >= columns;
                empty += !*text;
                without_loss += w == 0 && columns >= 60 && (!strstr(text, "620/1600") || !strstr(text, "loss 0.5423") || !strstr(text, "ETA 1h20m"));
                if (kind < 2) wide += strchr(text, 033) != NULL;
                if (!(kind & 1)) wide += strchr(text, '#') == NULL && strlen(text) != strspn(text, " !\"$%&'()*+,-./0123456789:;<=>?@"
                                 "ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~#\033");
            }
    ok(runs > 2000 && wide == 0 && empty == 0, "from 20 to 240 columns the line is shorter than the terminal is wide: %d of %d are not", wide, runs);
    ok(without_loss == 0, "from 60 columns on it has step, loss and ETA");
    char text[kStatusBytes];
    StatusLook look = {200, true, false};
    status_text(&kMiddle, kNoWork, kPlace, look, text);
    static const char* const kAll200[] = {"620/1600", "loss 0.5423", "lr 3.10e-05", "12.3k tok/s", "61% of GEMM", "62.1/80 GiB", "ETA 1h20m", "backward, layer 12"};
    bool all = true;
    for (int i = 0; i < COUNT(kAll200); i++) all = all && strstr(text, kAll200[i]);
    ok(all, "at 200 columns it has everything: %s", text);
    look.unicode = false;
    const ProgressWork half = {"evaluating", 18, 36};
    status_text(&kMiddle, half, kPlace, look, text);
    const char *filled = strchr(text, '#'), *rest = strchr(text, '-');
    ok(filled && rest && rest - filled == 20 && strspn(rest, "-") == 20 && strstr(text, "50%"), "half of the work is half of the bar: %s", text);
}

static void durations_case(void) {
    const struct {
        double seconds;
        const char* text;
    } times[] = {{0, "0s"}, {59.4, "59s"}, {59.6, "1m00s"}, {3599, "59m59s"}, {3600, "1h00m"}, {86400, "24h00m"}, {200000, "2d07h"}, {-3, "0s"}, {INFINITY, "11574d01h"}};
    for (int i = 0; i < COUNT(times); i++) {
        char text[32];
        duration_text(times[i].seconds, text);
        ok(!strcmp(text, times[i].text), "%g seconds: %s", times[i].seconds, text);
    }
}

// ---- the program in a terminal

typedef struct {
    Screen* screen;
    char* raw;      // all bytes
    size_t bytes;
    int code;
} TerminalRun;

// stop_after: when these words have come, Ctrl-C is typed once; NULL: it is not.
static TerminalRun run_in_terminal(const char* arguments, int columns, const char* environment, const char* stop_after) {
    TerminalRun t = {(Screen*)host_alloc(sizeof(Screen)), NULL, 0, -1};
    t.screen->columns = columns;
    char* line = text_of("exec env %s '%s' %s", environment, binary, arguments);
    int fd, status = 0;
    pid_t child = start_in_terminal(line, columns, &fd);
    char piece[4096];
    ssize_t got;
    while ((got = read(fd, piece, sizeof piece)) > 0) {
        t.raw = (char*)host_grow(t.raw, t.bytes + (size_t)got + 1);
        memcpy(t.raw + t.bytes, piece, (size_t)got);
        t.bytes += (size_t)got;
        t.raw[t.bytes] = 0;
        screen_feed(t.screen, piece, (size_t)got);
        if (stop_after && strstr(t.raw, stop_after)) {
            check(write(fd, "\x03", 1) == 1, "the terminal takes no input");
            stop_after = NULL;
        }
    }
    close(fd);
    waitpid(child, &status, 0);
    t.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    free(line);
    return t;
}

static void terminal_free(TerminalRun t) {
    free(t.screen);
    free(t.raw);
}

static char* terminal_flags(const char* more) {
    return with_flags(text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 8 --steps 8 --lr 1e-2 --backend cpu --val %s "
                              "--eval-every 4", model_dir, data_path, val_path), more);
}

static void live_case(void) {
    make_inputs();
    const int widths[] = {80, 200};
    for (int i = 0; i < COUNT(widths); i++) {
        char* flags = terminal_flags("");
        TerminalRun t = run_in_terminal(flags, widths[i], "-u NO_COLOR -u LC_ALL -u LC_CTYPE TERM=xterm LANG=C.UTF-8", NULL);
        ok(t.code == 0 && strstr(t.raw, "\033[K") && t.screen->others > 0 && t.screen->colors > 0, "%d columns: a live line with blocks and colour", widths[i]);
        ok(strstr(t.raw, "  4/8  loss ") && strstr(t.raw, "ETA "), "%d columns: it tells step, loss and ETA", widths[i]);
        ok(lines_with(t.screen, "step   1/8  ") == 1 && lines_with(t.screen, "step   8/8  ") == 1 && lines_with(t.screen, "step   4/8  ") == 0,
           "%d columns: the first and the last step leave a line, others are shown and pass", widths[i]);
        ok(lines_with(t.screen, "before the first step, ") == 1 && lines_with(t.screen, "8 steps in ") == 1 && lines_with(t.screen, "*") == 0,
           "%d columns: messages stand whole, and nothing of the live line is left", widths[i]);
        terminal_free(t);
        free(flags);
    }
}

static void plain_case(void) {
    make_inputs();
    char* flags = terminal_flags("");
    TerminalRun t = run_in_terminal(flags, 80, "TERM=dumb", NULL);
    ok(t.code == 0 && !strchr(t.raw, 033) && lines_with(t.screen, "step   4/8  ") == 1, "TERM=dumb: plain lines, no escapes");
    terminal_free(t);
    t = run_in_terminal(flags, 80, "-u LC_ALL -u LC_CTYPE NO_COLOR=1 TERM=xterm LANG=C", NULL);
    ok(t.code == 0 && t.screen->colors == 0 && t.screen->others == 0 && strstr(t.raw, "\033[K") && strstr(t.raw, "#"),
       "NO_COLOR and LANG=C: a live line in plain characters");
    terminal_free(t);
    char* bad = terminal_flags("--lr 1e30 --warmup 0");
    t = run_in_terminal(bad, 80, "TERM=xterm", NULL);
    int last = t.screen->line;
    ok(t.code == 2 && lines_with(t.screen, "train_llama3: ") == 1 && t.screen->column == 0 && !*t.screen->text[last],
       "an error stands in a line of its own, the last one: exit %d", t.code);
    terminal_free(t);
    free(bad);
    free(flags);
}

static void stop_case(void) {
    make_inputs();
    char* flags = terminal_flags("--steps 20000 --eval-every 20000");
    TerminalRun t = run_in_terminal(flags, 100, "-u NO_COLOR TERM=xterm", "step     1/20000");
    ok(t.code == 4 && lines_with(t.screen, "stopping after this step; Ctrl-C once more ") == 1 && lines_with(t.screen, "stopped after step ") == 1,
       "Ctrl-C is answered at once, and the run stops: exit %d", t.code);
    terminal_free(t);
    free(flags);
}

static const Case kCases[] = {{"emulation", emulation_case}, {"widths", widths_case}, {"durations", durations_case},
                              {"live", live_case},           {"plain", plain_case},
                              {"stop", stop_case}};

int main(int argc, char** argv) { return program_main("test_terminal", kCases, COUNT(kCases), argc, argv); }
