/* Optimizer rules that work value by value, in one pass over memory, for weights on a CPU. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

/* One program for every processor: the resolver picks the widest vectors it has. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SIMD
#endif

/* Arrays do not overlap, so values may be computed in any order. */
#define EACH_ALONE _Pragma("GCC ivdep")

/* Values that a thread takes at once. */
enum { PIECE = 1 << 15, MOST_THREADS = 256 };

/* A weight, as `optim.native.Line` describes it. */
struct line {
    void *weight;
    const void *gradient;
    void *slots[4];
    const void *estimate;
    int64_t size;
};
_Static_assert(sizeof(struct line) == 8 * sizeof(int64_t), "addresses come as int64");

typedef void rule(const struct line *, int64_t from, int64_t to, const double *of);

#define REAL float
#define SQRT sqrtf
#define NAME(rule) rule##_float32
#include "rules.h"
#undef REAL
#undef SQRT
#undef NAME
#define REAL double
#define SQRT sqrt
#define NAME(rule) rule##_float64
#include "rules.h"

static rule *const RULES[][2] = {
    {sgd_float32, sgd_float64},       {adamw_float32, adamw_float64},
    {lion_float32, lion_float64},     {adan_float32, adan_float64},
    {sophia_float32, sophia_float64},
};

struct work {
    rule *rule;
    const struct line *lines;
    int64_t count;
    const double *of;
    atomic_llong next;
};

static void *take_pieces(void *given)
{
    struct work *work = given;
    const struct line *line = work->lines;
    int64_t before = 0; /* pieces of the lines before this one */
    for (;;) {
        int64_t piece = atomic_fetch_add(&work->next, 1) - before;
        for (int64_t all; piece >= (all = (line->size + PIECE - 1) / PIECE); line++) {
            if (line == work->lines + work->count - 1)
                return 0;
            piece -= all, before += all;
        }
        int64_t from = piece * PIECE, to = from + PIECE;
        work->rule(line, from, to < line->size ? to : line->size, work->of);
    }
}

/* One step of `count` weights; `of` are rate, decay and the numbers of the rule. */
void update(int which, int wide, const struct line *lines, int64_t count, const double *of,
            int threads)
{
    if (!count)
        return;
    struct work work = {RULES[which][wide], lines, count, of, 0};
    pthread_t helpers[MOST_THREADS];
    int helping = 0;
    while (helping < threads - 1 && helping < MOST_THREADS &&
           !pthread_create(&helpers[helping], 0, take_pieces, &work))
        helping++;
    take_pieces(&work);
    while (helping)
        pthread_join(helpers[--helping], 0);
}
