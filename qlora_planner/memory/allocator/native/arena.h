/* torch's caching allocator, simulated: the same rules as memory/allocator/caching.py and addresses.py, whose docstrings
 * name their sources. Every change here is made there too; tests/memory/test_native.py compares the two. */

#ifndef QLORA_PLANNER_ARENA_H
#define QLORA_PLANNER_ARENA_H

#include <stdint.h>

#define ARENA_STREAMS 4
#define ARENA_POOLS (2 * ARENA_STREAMS)
#define ARENA_NONE (-1) /* no block: an empty tensor */
#define ARENA_PAST_LIMIT (-2)
#define ARENA_NO_MEMORY (-3) /* of the host, while simulating */
/* Lists of free blocks by size: 32 to an octave of up to 2^50 bytes, and a word of marks for 64 lists. */
#define ARENA_LISTS 1216

typedef struct {
    int64_t address, size;
    int32_t segment, previous, next;
    int32_t smaller, larger; /* of a free one: its neighbours in a list of its pool */
    int8_t pool, is_free, is_unmapped;
} Block;

typedef struct {
    int64_t size;
    int32_t live;
} Segment;

/* Free blocks, each list in the order of size and address; `filled` marks the lists that have any. */
typedef struct {
    uint64_t filled[ARENA_LISTS / 64];
    int32_t smallest[ARENA_LISTS];
} Pool;

typedef struct {
    int64_t size, address;
} Gap;

typedef struct {
    int32_t *blocks;
    int32_t count, capacity;
} Holes;

typedef struct {
    Block *blocks;
    int32_t block_count, block_capacity, unused_block; /* unused ones are a list by their `next` */
    Segment *segments;
    int32_t segment_count, segment_capacity, unused_segment; /* the same, by their `live` */
    Pool pools[ARENA_POOLS];
    Holes holes[ARENA_POOLS]; /* by pool, of expandable segments */
    int expands, apart;       /* apart: streams have address ranges of their own */
    Gap *gaps;
    int32_t gap_count, gap_capacity;
    int64_t low_address;
    int64_t limit; /* below 0: none */
    int64_t asked; /* the allocation that did not get through, rounded */
    int64_t allocated, peak_allocated, reserved, peak_reserved, non_releasable, peak_non_releasable;
} Arena;

void arena_init(Arena *arena, int64_t limit);
void arena_destroy(Arena *arena);
int arena_copy(Arena *copy, const Arena *arena);              /* 0, or ARENA_NO_MEMORY: then destroy the copy */
int32_t arena_malloc(Arena *arena, int64_t size, int stream); /* a block's number, or one of the above */
int arena_free(Arena *arena, int32_t block);                  /* 0, or ARENA_NO_MEMORY */
int arena_empty_cache(Arena *arena);                          /* 0, or ARENA_NO_MEMORY */
void arena_reset_peaks(Arena *arena);

/* Between the files of the arena. */
int arena_expands(Arena *arena, int apart);
int32_t arena_expand(Arena *arena, int64_t size, int pool);
int32_t arena_by_room(const Arena *arena, int32_t block);
int arena_unmap_free(Arena *arena);
int32_t arena_new_block(Arena *arena, int64_t address, int64_t size, int pool, int32_t segment);
int32_t arena_new_segment(Arena *arena, int64_t size);
int32_t arena_release(Arena *arena, int32_t block); /* the free block that it is part of then */
void arena_insert(Arena *arena, int32_t block);
void arena_take_out(Arena *arena, int32_t block);
int32_t arena_first_free(const Arena *arena, int pool, int64_t size); /* the smallest of at least `size`, or ARENA_NONE */
int32_t arena_next_free(const Arena *arena, int32_t block);           /* the next larger one of its pool, or ARENA_NONE */
int arena_past_limit(const Arena *arena, int64_t more);
int64_t arena_segment_bytes(int64_t size);
int arena_grow(void **items, int32_t *capacity, int32_t wanted, int64_t item_size);

#endif
