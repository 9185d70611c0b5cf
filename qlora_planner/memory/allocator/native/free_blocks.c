/* Free blocks of a pool, in the order of size and address: a list for each range of sizes, mostly of one or two. */

#include "arena.h"

#ifdef _MSC_VER
#include <intrin.h>
static int last_bit(uint64_t word) {
    unsigned long bit;
    _BitScanReverse64(&bit, word);
    return (int)bit;
}
static int first_bit(uint64_t word) {
    unsigned long bit;
    _BitScanForward64(&bit, word);
    return (int)bit;
}
#else
static int last_bit(uint64_t word) { return 63 - __builtin_clzll(word); }
static int first_bit(uint64_t word) { return __builtin_ctzll(word); }
#endif

/* The list of a size: one for each of the smallest, then 32 to an octave. */
static int list_of(int64_t size) {
    uint64_t units = (uint64_t)size / 512;
    if (units < 32) return (int)units;
    int shift = last_bit(units) - 5;
    return 32 * shift + (int)(units >> shift);
}

/* The smallest block of the first list from `list` on that has any. */
static int32_t smallest_from(const Pool *pool, int list) {
    int word = list / 64;
    if (word >= ARENA_LISTS / 64) return ARENA_NONE;
    uint64_t filled = pool->filled[word] & (~(uint64_t)0 << (list % 64));
    while (!filled) {
        if (++word == ARENA_LISTS / 64) return ARENA_NONE;
        filled = pool->filled[word];
    }
    return pool->smallest[64 * word + first_bit(filled)];
}

int32_t arena_first_free(const Arena *arena, int pool, int64_t size) {
    const Pool *free_blocks = &arena->pools[pool];
    int list = list_of(size);
    if (list >= ARENA_LISTS) return ARENA_NONE; /* more than any block has */
    if (free_blocks->filled[list / 64] >> (list % 64) & 1)
        for (int32_t at = free_blocks->smallest[list]; at != ARENA_NONE; at = arena->blocks[at].larger)
            if (arena->blocks[at].size >= size) return at;
    return smallest_from(free_blocks, list + 1);
}

int32_t arena_next_free(const Arena *arena, int32_t number) {
    const Block *block = &arena->blocks[number];
    if (block->larger != ARENA_NONE) return block->larger;
    return smallest_from(&arena->pools[block->pool], list_of(block->size) + 1);
}

void arena_insert(Arena *arena, int32_t number) {
    Block *blocks = arena->blocks, *block = &blocks[number];
    Pool *pool = &arena->pools[block->pool];
    int list = list_of(block->size);
    uint64_t mark = (uint64_t)1 << (list % 64);
    int32_t before = ARENA_NONE, after = pool->filled[list / 64] & mark ? pool->smallest[list] : ARENA_NONE;
    while (after != ARENA_NONE && (blocks[after].size < block->size ||
                                   (blocks[after].size == block->size && blocks[after].address < block->address))) {
        before = after;
        after = blocks[after].larger;
    }
    block->smaller = before;
    block->larger = after;
    block->is_free = 1;
    if (after != ARENA_NONE) blocks[after].smaller = number;
    if (before != ARENA_NONE) {
        blocks[before].larger = number;
    } else {
        pool->smallest[list] = number;
        pool->filled[list / 64] |= mark;
    }
}

void arena_take_out(Arena *arena, int32_t number) {
    Block *blocks = arena->blocks, *block = &blocks[number];
    if (block->larger != ARENA_NONE) blocks[block->larger].smaller = block->smaller;
    if (block->smaller != ARENA_NONE) {
        blocks[block->smaller].larger = block->larger;
        return;
    }
    Pool *pool = &arena->pools[block->pool];
    int list = list_of(block->size);
    pool->smallest[list] = block->larger;
    if (block->larger == ARENA_NONE) pool->filled[list / 64] &= ~((uint64_t)1 << (list % 64));
}
