/* Expandable segments: the same rules as memory/allocator/expandable.py. */

#include <stdlib.h>
#include <string.h>

#include "arena.h"

static const int64_t RANGE_BYTES = (int64_t)1 << 50;
static const int64_t SMALL_UNIT = (int64_t)2 << 20;
static const int64_t LARGE_UNIT = (int64_t)20 << 20;

static int64_t unit_of(int pool) { return pool & 1 ? SMALL_UNIT : LARGE_UNIT; }

/* ---- unmapped blocks, in the order of their addresses ---- */

static int add_hole(Arena *arena, int32_t number) {
    Block *block = &arena->blocks[number];
    Holes *holes = &arena->holes[block->pool];
    if (arena_grow((void **)&holes->blocks, &holes->capacity, holes->count + 1, sizeof(int32_t)))
        return ARENA_NO_MEMORY;
    int32_t at = holes->count++;
    for (; at > 0 && arena->blocks[holes->blocks[at - 1]].address > block->address; at--)
        holes->blocks[at] = holes->blocks[at - 1];
    holes->blocks[at] = number;
    block->is_free = 0;
    block->is_unmapped = 1;
    return 0;
}

static void remove_hole(Arena *arena, int32_t number) {
    Holes *holes = &arena->holes[arena->blocks[number].pool];
    int32_t at = 0;
    while (holes->blocks[at] != number) at++;
    memmove(&holes->blocks[at], &holes->blocks[at + 1], (size_t)(holes->count - at - 1) * sizeof(int32_t));
    holes->count--;
    arena->blocks[number].is_unmapped = 0;
}

int arena_expands(Arena *arena, int apart) {
    arena->expands = 1;
    arena->apart = apart;
    for (int pool = 0; pool < ARENA_POOLS; pool++) {
        /* The whole range counts as one segment of no size, as in Python. */
        int32_t segment = arena_new_segment(arena, 0);
        int32_t whole = segment < 0 ? segment : arena_new_block(arena, pool * RANGE_BYTES, RANGE_BYTES, pool, segment);
        if (whole < 0 || add_hole(arena, whole)) return ARENA_NO_MEMORY;
    }
    return 0;
}

/* ---- best fit ---- */

static int64_t room_of(const Arena *arena, int32_t number) {
    const Block *block = &arena->blocks[number];
    int64_t room = block->size;
    if (block->next != ARENA_NONE && arena->blocks[block->next].is_unmapped) room += arena->blocks[block->next].size;
    return room;
}

int32_t arena_by_room(const Arena *arena, int32_t number) {
    for (;;) {
        int32_t larger = arena_next_free(arena, number);
        if (larger == ARENA_NONE || room_of(arena, larger) >= room_of(arena, number)) return number;
        number = larger;
    }
}

/* ---- mapping ---- */

/* Split a block at `address`; the upper part is as free as the block was. */
static int32_t cut(Arena *arena, int32_t number, int64_t address) {
    Block whole = arena->blocks[number];
    int32_t rest = arena_new_block(arena, address, whole.address + whole.size - address, whole.pool, whole.segment);
    if (rest < 0) return rest;
    arena->blocks[rest].is_free = whole.is_free;
    arena->blocks[rest].previous = number;
    arena->blocks[rest].next = whole.next;
    if (whole.next != ARENA_NONE) arena->blocks[whole.next].previous = rest;
    arena->blocks[number].next = rest;
    arena->blocks[number].size = address - whole.address;
    return rest;
}

/* Map the start of an unmapped block for at least `size` bytes; the free block that holds it. */
static int32_t map(Arena *arena, int32_t hole, int64_t size) {
    int64_t unit = unit_of(arena->blocks[hole].pool);
    int64_t mapped = (size + unit - 1) / unit * unit;
    if (mapped > arena->blocks[hole].size) mapped = arena->blocks[hole].size;
    arena->reserved += mapped;
    if (arena->reserved > arena->peak_reserved) arena->peak_reserved = arena->reserved;
    remove_hole(arena, hole);
    if (mapped < arena->blocks[hole].size) {
        int32_t rest = cut(arena, hole, arena->blocks[hole].address + mapped);
        if (rest < 0 || add_hole(arena, rest)) return ARENA_NO_MEMORY;
    }
    return arena_release(arena, hole);
}

/* The first place, in the order of addresses, where free and unmapped blocks side by side give `size` bytes. */
static int32_t room_for(const Arena *arena, int64_t size, int pool) {
    const Holes *holes = &arena->holes[pool];
    for (int32_t i = 0; i < holes->count; i++) {
        int32_t start = holes->blocks[i], before = arena->blocks[start].previous;
        if (before != ARENA_NONE && arena->blocks[before].is_free) start = before;
        int64_t room = 0;
        for (int32_t at = start; room < size && at != ARENA_NONE; at = arena->blocks[at].next) {
            if (!arena->blocks[at].is_free && !arena->blocks[at].is_unmapped) break;
            room += arena->blocks[at].size;
        }
        if (room >= size) return start;
    }
    return ARENA_NO_MEMORY;
}

int32_t arena_expand(Arena *arena, int64_t size, int pool) {
    int32_t start = room_for(arena, size, pool);
    /* The limit counts a segment of its own, however little has to be mapped. */
    if (arena_past_limit(arena, arena_segment_bytes(size))) {
        if (arena_empty_cache(arena)) return ARENA_NO_MEMORY;
        start = room_for(arena, size, pool);
        if (arena_past_limit(arena, arena_segment_bytes(size))) {
            arena->asked = size;
            return ARENA_PAST_LIMIT;
        }
    }
    while (start >= 0) {
        if (arena->blocks[start].is_unmapped && (start = map(arena, start, size)) < 0) break;
        if (arena->blocks[start].size >= size) {
            arena_take_out(arena, start);
            return start;
        }
        int32_t after = arena->blocks[start].next;
        start = arena->blocks[after].is_unmapped ? map(arena, after, size - arena->blocks[start].size) : after;
    }
    return ARENA_NO_MEMORY;
}

static int unmap(Arena *arena, int32_t block, int64_t start, int64_t stop) {
    arena_take_out(arena, block);
    int32_t hole = start > arena->blocks[block].address ? cut(arena, block, start) : block;
    if (hole < 0) return ARENA_NO_MEMORY;
    if (stop < arena->blocks[hole].address + arena->blocks[hole].size) {
        int32_t tail = cut(arena, hole, stop);
        if (tail < 0) return ARENA_NO_MEMORY;
        arena_insert(arena, tail);
    }
    if (hole != block) arena_insert(arena, block);
    arena->reserved -= arena->blocks[hole].size;
    return add_hole(arena, hole);
}

/* Unmap every unit that lies wholly in a free block. */
int arena_unmap_free(Arena *arena) {
    for (int pool = 0; pool < ARENA_POOLS; pool++) {
        int64_t unit = unit_of(pool);
        /* What is left of a block comes before those that are larger than it was. */
        for (int32_t at = arena_first_free(arena, pool, 0), next; at != ARENA_NONE; at = next) {
            next = arena_next_free(arena, at);
            const Block *block = &arena->blocks[at];
            int64_t start = (block->address + unit - 1) / unit * unit;
            int64_t stop = (block->address + block->size) / unit * unit;
            int failed = start < stop ? unmap(arena, at, start, stop) : 0;
            if (failed) return failed;
        }
    }
    return 0;
}
