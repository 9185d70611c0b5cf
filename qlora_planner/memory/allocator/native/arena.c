#include "arena.h"

#include <stdlib.h>
#include <string.h>

static const int64_t MIN_BLOCK = 512;
static const int64_t SMALL_LIMIT = (int64_t)1 << 20;
static const int64_t SMALL_SEGMENT = (int64_t)2 << 20;
static const int64_t LARGE_SEGMENT = (int64_t)20 << 20;
static const int64_t LARGE_LIMIT = (int64_t)10 << 20;
static const int64_t ROUND_LARGE = (int64_t)2 << 20;
static const int64_t RANGE = (int64_t)32 << 20;
static const int64_t TOP_ADDRESS = (int64_t)1 << 46;

static int64_t rounded(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

/* Make room for `wanted` items; 0, or ARENA_NO_MEMORY. */
int arena_grow(void **items, int32_t *capacity, int32_t wanted, int64_t item_size) {
    if (wanted <= *capacity) return 0;
    int32_t larger = *capacity ? *capacity * 2 : 64;
    if (larger < wanted) larger = wanted;
    void *moved = realloc(*items, (size_t)larger * (size_t)item_size);
    if (moved == NULL) return ARENA_NO_MEMORY;
    *items = moved;
    *capacity = larger;
    return 0;
}

void arena_init(Arena *arena, int64_t limit) {
    memset(arena, 0, sizeof *arena);
    arena->limit = limit;
    arena->low_address = TOP_ADDRESS;
    arena->unused_block = arena->unused_segment = ARENA_NONE;
}

void arena_destroy(Arena *arena) {
    free(arena->blocks);
    free(arena->segments);
    free(arena->gaps);
    for (int i = 0; i < ARENA_POOLS; i++) free(arena->holes[i].blocks);
}

static int copied(void **items, int32_t count, int32_t *capacity, size_t item_size) {
    void *from = *items;
    *items = NULL;
    *capacity = 0;
    if (count == 0) return 0;
    if (arena_grow(items, capacity, count, (int64_t)item_size)) return ARENA_NO_MEMORY;
    memcpy(*items, from, (size_t)count * item_size);
    return 0;
}

int arena_copy(Arena *copy, const Arena *arena) {
    *copy = *arena;
    int failed = copied((void **)&copy->blocks, copy->block_count, &copy->block_capacity, sizeof(Block));
    failed |= copied((void **)&copy->segments, copy->segment_count, &copy->segment_capacity, sizeof(Segment));
    failed |= copied((void **)&copy->gaps, copy->gap_count, &copy->gap_capacity, sizeof(Gap));
    for (int i = 0; i < ARENA_POOLS; i++) {
        Holes *holes = &copy->holes[i];
        failed |= copied((void **)&holes->blocks, holes->count, &holes->capacity, sizeof(int32_t));
    }
    return failed ? ARENA_NO_MEMORY : 0;
}

/* ---- numbers of blocks and segments ---- */

int32_t arena_new_block(Arena *arena, int64_t address, int64_t size, int pool, int32_t segment) {
    int32_t number = arena->unused_block;
    if (number != ARENA_NONE) {
        arena->unused_block = arena->blocks[number].next;
    } else {
        number = arena->block_count;
        if (arena_grow((void **)&arena->blocks, &arena->block_capacity, number + 1, sizeof(Block)))
            return ARENA_NO_MEMORY;
        arena->block_count++;
    }
    Block *block = &arena->blocks[number];
    *block = (Block){.address = address, .size = size, .segment = segment, .previous = ARENA_NONE, .next = ARENA_NONE,
                     .pool = (int8_t)pool, .is_free = 0, .is_unmapped = 0};
    return number;
}

static void drop_block(Arena *arena, int32_t number) {
    arena->blocks[number].next = arena->unused_block;
    arena->unused_block = number;
}

int32_t arena_new_segment(Arena *arena, int64_t size) {
    int32_t number = arena->unused_segment;
    if (number != ARENA_NONE) {
        arena->unused_segment = arena->segments[number].live;
    } else {
        number = arena->segment_count;
        if (arena_grow((void **)&arena->segments, &arena->segment_capacity, number + 1, sizeof(Segment)))
            return ARENA_NO_MEMORY;
        arena->segment_count++;
    }
    arena->segments[number] = (Segment){.size = size, .live = 0};
    return number;
}

static void drop_segment(Arena *arena, int32_t number) {
    arena->segments[number].live = arena->unused_segment;
    arena->unused_segment = number;
}

/* ---- where segments lie ---- */

static int give_address(Arena *arena, int64_t address, int64_t size) {
    int32_t kept = 0;
    for (int32_t i = 0; i < arena->gap_count; i++) {
        Gap gap = arena->gaps[i];
        if (gap.address + gap.size == address) {
            address = gap.address;
            size += gap.size;
        } else if (address + size == gap.address) {
            size += gap.size;
        } else {
            arena->gaps[kept++] = gap;
        }
    }
    arena->gap_count = kept;
    if (arena_grow((void **)&arena->gaps, &arena->gap_capacity, kept + 1, sizeof(Gap))) return ARENA_NO_MEMORY;
    arena->gaps[arena->gap_count++] = (Gap){.size = size, .address = address};
    return 0;
}

static int64_t take_address(Arena *arena, int64_t wanted) {
    int32_t best = -1;
    for (int32_t i = 0; i < arena->gap_count; i++) {
        Gap *gap = &arena->gaps[i];
        if (gap->size < wanted) continue;
        if (best < 0 || gap->size < arena->gaps[best].size ||
            (gap->size == arena->gaps[best].size && gap->address < arena->gaps[best].address))
            best = i;
    }
    int64_t size, address;
    if (best >= 0) {
        size = arena->gaps[best].size;
        address = arena->gaps[best].address;
        /* Their order stays: a remainder is not merged with the gap that it touches, and the next merge goes by order. */
        memmove(&arena->gaps[best], &arena->gaps[best + 1], (size_t)(--arena->gap_count - best) * sizeof(Gap));
    } else {
        size = rounded(wanted, RANGE);
        address = arena->low_address -= size;
    }
    if (size > wanted) {
        if (arena_grow((void **)&arena->gaps, &arena->gap_capacity, arena->gap_count + 1, sizeof(Gap)))
            return ARENA_NO_MEMORY;
        arena->gaps[arena->gap_count++] = (Gap){.size = size - wanted, .address = address + wanted};
    }
    return address;
}

/* ---- what a run calls ---- */

int64_t arena_segment_bytes(int64_t size) {
    if (size <= SMALL_LIMIT) return SMALL_SEGMENT;
    return size < LARGE_LIMIT ? LARGE_SEGMENT : rounded(size, ROUND_LARGE);
}

int arena_past_limit(const Arena *arena, int64_t more) {
    return arena->limit >= 0 && arena->reserved + more > arena->limit;
}

static int32_t new_from_driver(Arena *arena, int64_t size, int pool) {
    int64_t wanted = arena_segment_bytes(size);
    if (arena_past_limit(arena, wanted)) {
        if (arena_empty_cache(arena)) return ARENA_NO_MEMORY;
        if (arena_past_limit(arena, wanted)) {
            arena->asked = size;
            return ARENA_PAST_LIMIT;
        }
    }
    arena->reserved += wanted;
    if (arena->reserved > arena->peak_reserved) arena->peak_reserved = arena->reserved;
    int64_t address = take_address(arena, wanted);
    int32_t segment = address < 0 ? ARENA_NO_MEMORY : arena_new_segment(arena, wanted);
    return segment < 0 ? ARENA_NO_MEMORY : arena_new_block(arena, address, wanted, pool, segment);
}

int32_t arena_malloc(Arena *arena, int64_t size_bytes, int stream) {
    if (size_bytes <= 0) return ARENA_NONE;
    int64_t size = rounded(size_bytes, MIN_BLOCK);
    int small = size <= SMALL_LIMIT;
    int index = small + (arena->expands && !arena->apart ? 0 : 2 * stream);
    int32_t number = arena_first_free(arena, index, size);
    if (number != ARENA_NONE) {
        if (arena->expands) number = arena_by_room(arena, number);
        arena_take_out(arena, number);
    } else {
        number = arena->expands ? arena_expand(arena, size, index) : new_from_driver(arena, size, index);
        if (number < 0) return number;
    }
    int64_t remaining = arena->blocks[number].size - size;
    if (remaining && (small || arena->expands || remaining > SMALL_LIMIT)) {
        Block whole = arena->blocks[number];
        int32_t rest = arena_new_block(arena, whole.address + size, remaining, whole.pool, whole.segment);
        if (rest < 0) return ARENA_NO_MEMORY;
        arena->blocks[rest].previous = number;
        arena->blocks[rest].next = whole.next;
        if (whole.next != ARENA_NONE) arena->blocks[whole.next].previous = rest;
        arena->blocks[number].next = rest;
        arena->blocks[number].size = size;
        arena_insert(arena, rest);
    }
    Block *block = &arena->blocks[number];
    block->is_free = 0;
    Segment *segment = &arena->segments[block->segment];
    if (!segment->live) {
        arena->non_releasable += segment->size;
        if (arena->non_releasable > arena->peak_non_releasable) arena->peak_non_releasable = arena->non_releasable;
    }
    segment->live++;
    arena->allocated += block->size;
    if (arena->allocated > arena->peak_allocated) arena->peak_allocated = arena->allocated;
    return number;
}

int arena_free(Arena *arena, int32_t number) {
    if (number == ARENA_NONE) return 0;
    Block *block = &arena->blocks[number];
    Segment *segment = &arena->segments[block->segment];
    arena->allocated -= block->size;
    if (--segment->live == 0) arena->non_releasable -= segment->size;
    arena_release(arena, number);
    return 0;
}

/* Make a free block of `number` and `after`, which follows it. */
static void join(Arena *arena, int32_t number, int32_t after) {
    Block *blocks = arena->blocks;
    int32_t beyond = blocks[after].next;
    blocks[number].size += blocks[after].size;
    blocks[number].next = beyond;
    if (beyond != ARENA_NONE) blocks[beyond].previous = number;
    drop_block(arena, after);
}

int32_t arena_release(Arena *arena, int32_t number) {
    int32_t before = arena->blocks[number].previous, after = arena->blocks[number].next;
    if (after != ARENA_NONE && arena->blocks[after].is_free) {
        arena_take_out(arena, after);
        join(arena, number, after);
    }
    if (before != ARENA_NONE && arena->blocks[before].is_free) {
        arena_take_out(arena, before);
        join(arena, before, number);
        number = before;
    }
    arena_insert(arena, number);
    return number;
}

int arena_empty_cache(Arena *arena) {
    if (arena->expands) return arena_unmap_free(arena);
    for (int pool = 0; pool < ARENA_POOLS; pool++)
        for (int32_t at = arena_first_free(arena, pool, 0), next; at != ARENA_NONE; at = next) {
            next = arena_next_free(arena, at);
            Block *block = &arena->blocks[at];
            if (arena->segments[block->segment].live) continue;
            arena->reserved -= block->size;
            if (give_address(arena, block->address, block->size)) return ARENA_NO_MEMORY;
            arena_take_out(arena, at);
            drop_segment(arena, block->segment);
            drop_block(arena, at);
        }
    return 0;
}

void arena_reset_peaks(Arena *arena) {
    arena->peak_allocated = arena->allocated;
    arena->peak_reserved = arena->reserved;
    arena->peak_non_releasable = arena->non_releasable;
}
