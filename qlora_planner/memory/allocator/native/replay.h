/* Segments of a trace, played through the arena: the same as `TraceReplayer._segment` in memory/replay/player.py. */

#ifndef QLORA_PLANNER_REPLAY_H
#define QLORA_PLANNER_REPLAY_H

#include "arena.h"

#define REPLAY_COMPONENTS 32
#define REPLAY_UNKNOWN (-4) /* a storage that was never born */
#define REPLAY_ON_HOST (-1) /* stands in for a component */

/* What a storage that dies away from home is looked for by, in the order of memory/replay/compiled.py. */
enum { EVERY_OUTSIDE, SHARED, ALL_OF_A_PART, BESIDE, ONE_LAYER };

enum { BIRTH, DEATH, DEATH_ELSEWHERE, BIRTH_ON_HOST, BIRTH_STREAMED };

typedef struct {
    int64_t kind, storage, size, component, where, base, argument;
} Act;

typedef struct {
    int32_t storage, block, component;
    int64_t size;
} Survivor;

typedef struct {
    Survivor *items;
    int32_t count, capacity;
} Survivors;

typedef struct {
    Survivor is;
    int8_t alive;
} Local;

typedef struct Replay {
    Arena arena;
    int64_t totals[REPLAY_COMPONENTS], at_peak[REPLAY_COMPONENTS];
    int32_t components, gradients; /* how many there are, and the position of gradients */
    Survivors *tables;             /* by stage, step, micro-batch and layer */
    int32_t table_count;
    Local *here;     /* by storage: what the segment that is played holds */
    int32_t *born;   /* storages in the order of their births in it */
    int8_t *is_kept; /* whether its table had the storage beforehand */
    int32_t storage_count;
    const int64_t *parts;  /* by storage: those of the same number play the same part; -1: none */
    const int64_t *places; /* by layer: the traced layer that stands for it */
    int32_t layer_count;
    int64_t lost, host_bytes, host_peak;
    int32_t births; /* so far in a segment that is played in pieces; below 0: none is */
    int (*end)(struct Replay *replay, const Survivor *survivor); /* what its end is; NULL: it is freed */
} Replay;

/* Peaks of one phase over the segments that were played for it. */
typedef struct {
    int64_t live, allocated, reserved, non_releasable, components[REPLAY_COMPONENTS];
    int8_t noted;
} Phase;

/* One step of a stretch: a segment (below 0: none) for a layer, the phase that it counts for, and whether peaks begin. */
typedef struct {
    int64_t segment, layer, base, phase, begins;
} Step;

typedef struct Acts {
    const Act *acts;
    int64_t count;
} Acts;

/* A segment of the last traced token, as every later one plays it: with all of its acts, and in outline. */
typedef struct {
    const Act *whole, *outline;
    int64_t whole_count, outline_count, base, layer;
} TokenSegment;

/* How a storage grows from token to token, as `Growth` of memory/replay/tokens.py says; `first` below 0: it does not. */
typedef struct {
    int64_t first, step, last;
} Growing;

typedef struct {
    const TokenSegment *segments;
    int64_t segment_count;
    const Growing *growing; /* by storage */
    const int64_t *before;  /* by storage: the one of the token before that plays its part */
    const int64_t *ages;    /* tables of a layer, of the oldest traced token to the newest, layer after layer */
    int64_t age_count, traced, tokens, whole, stride; /* one token of `stride` is played */
} Tokens;

/* Make room for a script of so many storages, layers and tables. 0, or ARENA_NO_MEMORY. */
int replay_use(Replay *replay, const int64_t *parts, int32_t storages, const int64_t *places, int32_t layers, int32_t tables);
void replay_destroy(Replay *replay);
void replay_begin(Replay *replay);
int replay_stretch(Replay *replay, const Acts *acts, const Step *steps, int64_t count, Phase *phases);
int replay_keep(Survivors *table, Survivor survivor);
int replay_drop_elsewhere(Replay *replay, const Act *act, int64_t layer, const Survivors *own);
int replay_tokens(Replay *replay, const Tokens *tokens, Act *scratch);
int replay_segment(Replay *replay, const Act *acts, int64_t count, int64_t base, int64_t layer, int last);
int replay_free_all(Replay *replay, int64_t table, int component);
int replay_age(Replay *replay, int64_t older, int64_t newer, const int64_t *before);
int32_t replay_malloc(Replay *replay, int64_t size, int component, int stream);
int replay_free(Replay *replay, int32_t block, int component);

#endif
