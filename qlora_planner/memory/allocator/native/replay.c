#include "replay.h"

#include <stdlib.h>
#include <string.h>

int replay_use(Replay *replay, const int64_t *parts, int32_t storages, const int64_t *places, int32_t layers, int32_t tables) {
    if (storages > replay->storage_count) {
        int32_t had = replay->storage_count, a = had, b = had, c = had;
        if (arena_grow((void **)&replay->here, &a, storages, sizeof(Local)) ||
            arena_grow((void **)&replay->born, &b, storages, sizeof(int32_t)) ||
            arena_grow((void **)&replay->is_kept, &c, storages, 1))
            return ARENA_NO_MEMORY;
        storages = a < b ? (a < c ? a : c) : (b < c ? b : c);
        memset(replay->here + had, 0, (size_t)(storages - had) * sizeof(Local));
        memset(replay->is_kept + had, 0, (size_t)(storages - had));
        replay->storage_count = storages;
    }
    if (tables > replay->table_count) {
        int32_t had = replay->table_count;
        if (arena_grow((void **)&replay->tables, &replay->table_count, tables, sizeof(Survivors))) return ARENA_NO_MEMORY;
        memset(replay->tables + had, 0, (size_t)(replay->table_count - had) * sizeof(Survivors));
    }
    replay->parts = parts;
    replay->places = places;
    replay->layer_count = layers;
    return 0;
}

void replay_destroy(Replay *replay) {
    arena_destroy(&replay->arena);
    for (int32_t i = 0; i < replay->table_count; i++) free(replay->tables[i].items);
    free(replay->tables);
    free(replay->here);
    free(replay->born);
    free(replay->is_kept);
}

void replay_begin(Replay *replay) {
    arena_reset_peaks(&replay->arena);
    memcpy(replay->at_peak, replay->totals, sizeof replay->totals);
}

static void note_peak(Replay *replay) {
    if (replay->arena.allocated == replay->arena.peak_allocated)
        memcpy(replay->at_peak, replay->totals, (size_t)replay->components * sizeof(int64_t));
}

int32_t replay_malloc(Replay *replay, int64_t size, int component, int stream) {
    int32_t block = arena_malloc(&replay->arena, size, stream);
    if (block >= 0) {
        replay->totals[component] += replay->arena.blocks[block].size;
        note_peak(replay);
    }
    return block;
}

int replay_free(Replay *replay, int32_t block, int component) {
    if (block < 0) return 0;
    replay->totals[component] -= replay->arena.blocks[block].size;
    return arena_free(&replay->arena, block);
}

static int end_of(Replay *replay, const Survivor *survivor) {
    if (replay->end) return replay->end(replay, survivor);
    if (survivor->component == REPLAY_ON_HOST) {
        replay->host_bytes -= survivor->size;
        return 0;
    }
    return replay_free(replay, survivor->block, survivor->component);
}

int replay_keep(Survivors *table, Survivor survivor) {
    for (int32_t i = 0; i < table->count; i++)
        if (table->items[i].storage == survivor.storage) {
            table->items[i] = survivor;
            return 0;
        }
    if (arena_grow((void **)&table->items, &table->capacity, table->count + 1, sizeof(Survivor)))
        return ARENA_NO_MEMORY;
    table->items[table->count++] = survivor;
    return 0;
}

/* Free what `storage` left in a table, or what plays its part there. */
static int drop(Replay *replay, int64_t table_number, int64_t storage, const Survivors *own) {
    if (table_number < 0 || table_number >= replay->table_count) {
        replay->lost++;
        return 0;
    }
    Survivors *table = &replay->tables[table_number];
    int32_t at = -1;
    for (int32_t i = 0; i < table->count && at < 0; i++)
        if (table->items[i].storage == storage) at = i;
    int64_t part = replay->parts[storage];
    for (int32_t i = 0; i < table->count && at < 0; i++)
        if (part >= 0 && replay->parts[table->items[i].storage] == part) at = i;
    if (at < 0) {
        replay->lost++;
        return 0;
    }
    Survivor survivor = table->items[at];
    memmove(&table->items[at], &table->items[at + 1], (size_t)(table->count - at - 1) * sizeof(Survivor));
    table->count--;
    if (table == own) replay->is_kept[survivor.storage] = 0;
    return end_of(replay, &survivor);
}

int replay_drop_elsewhere(Replay *replay, const Act *act, int64_t layer, const Survivors *own) {
    switch (act->where) {
    case SHARED:
        if (act->argument != layer) return 0;
        return drop(replay, act->base, act->storage, own);
    case EVERY_OUTSIDE:
        return drop(replay, act->base, act->storage, own);
    case ALL_OF_A_PART:
        for (int32_t whole = 0; whole < replay->layer_count; whole++)
            if (replay->places[whole] == act->argument) {
                int failed = drop(replay, act->base + 1 + whole, act->storage, own);
                if (failed) return failed;
            }
        return 0;
    case BESIDE:
        layer += act->argument;
        break;
    default:
        layer = act->argument;
    }
    if (layer >= replay->layer_count) {
        replay->lost++;
        return 0;
    }
    return drop(replay, act->base + 1 + layer, act->storage, own);
}

static int play(Replay *replay, const Act *acts, int64_t count, int64_t layer, const Survivors *own, int32_t *births) {
    for (const Act *act = acts; act < acts + count; act++) {
        Local *local = &replay->here[act->storage];
        int failed = 0;
        if (act->kind == BIRTH || act->kind == BIRTH_STREAMED) {
            int stream = act->kind == BIRTH_STREAMED;
            if (replay->is_kept[act->storage]) {
                if (act->component == replay->gradients) { /* added to the gradient that is there, and gone */
                    int32_t block = replay_malloc(replay, act->size, (int)act->component, stream);
                    if (block < ARENA_NONE) return block;
                    failed = replay_free(replay, block, (int)act->component);
                }
            } else {
                int32_t block = replay_malloc(replay, act->size, (int)act->component, stream);
                if (block < ARENA_NONE) return block;
                local->is = (Survivor){(int32_t)act->storage, block, (int32_t)act->component, act->size};
                local->alive = 1;
                replay->born[(*births)++] = (int32_t)act->storage;
            }
        } else if (act->kind == DEATH) {
            if (!local->alive) return REPLAY_UNKNOWN;
            local->alive = 0;
            failed = end_of(replay, &local->is);
        } else if (act->kind == DEATH_ELSEWHERE) {
            failed = replay_drop_elsewhere(replay, act, layer, own);
        } else if (act->kind == BIRTH_ON_HOST) {
            local->is = (Survivor){(int32_t)act->storage, ARENA_NONE, REPLAY_ON_HOST, act->size};
            local->alive = 1;
            replay->born[(*births)++] = (int32_t)act->storage;
            replay->host_bytes += act->size;
            if (replay->host_bytes > replay->host_peak) replay->host_peak = replay->host_bytes;
        }
        if (failed) return failed;
    }
    return 0;
}

/* Play a segment for a layer (-1: outside them), or a piece of it up to the `last`; `base` is the table of its stage
 * outside the layers. */
int replay_segment(Replay *replay, const Act *acts, int64_t count, int64_t base, int64_t layer, int last) {
    Survivors *own = &replay->tables[base + 1 + layer];
    if (replay->births < 0) {
        replay->births = 0;
        for (int32_t i = 0; i < own->count; i++) replay->is_kept[own->items[i].storage] = 1;
    }
    int failed = play(replay, acts, count, layer, own, &replay->births);
    if (!last && !failed) return 0;
    for (int32_t i = 0; i < own->count; i++) replay->is_kept[own->items[i].storage] = 0;
    for (int32_t i = 0; i < replay->births; i++) {
        Local *local = &replay->here[replay->born[i]];
        if (local->alive && !failed) failed = replay_keep(own, local->is);
        local->alive = 0;
    }
    replay->births = -1;
    return failed;
}

/* Note what a phase came to, as `TraceReplayer._note` does. */
static void note(const Replay *replay, Phase *phase) {
    const Arena *arena = &replay->arena;
    if (!phase->noted || arena->peak_allocated > phase->allocated) {
        phase->allocated = arena->peak_allocated;
        memcpy(phase->components, replay->at_peak, sizeof phase->components);
    }
    if (arena->peak_reserved > phase->reserved) phase->reserved = arena->peak_reserved;
    if (arena->peak_non_releasable > phase->non_releasable) phase->non_releasable = arena->peak_non_releasable;
    phase->live = arena->allocated;
    phase->noted = 1;
}

/* Play steps one after the other; `acts` are by segment, `phases` by number. */
int replay_stretch(Replay *replay, const Acts *acts, const Step *steps, int64_t count, Phase *phases) {
    for (const Step *step = steps; step < steps + count; step++) {
        if (step->begins) replay_begin(replay);
        if (step->segment >= 0) {
            const Acts *own = &acts[step->segment];
            int failed = replay_segment(replay, own->acts, own->count, step->base, step->layer, 1);
            if (failed) return failed;
        }
        note(replay, &phases[step->phase]);
    }
    return 0;
}

/* Free what a table has of a component. */
int replay_free_all(Replay *replay, int64_t table_number, int component) {
    Survivors *table = &replay->tables[table_number];
    int32_t kept = 0;
    int failed = 0;
    for (int32_t i = 0; i < table->count; i++) {
        Survivor survivor = table->items[i];
        if (survivor.component != component)
            table->items[kept++] = survivor;
        else if (!failed)
            failed = end_of(replay, &survivor);
    }
    table->count = kept;
    return failed;
}

/* Give the older token's table what the newer one's holds, under the storages `before` them; the newer keeps none. */
int replay_age(Replay *replay, int64_t older, int64_t newer, const int64_t *before) {
    Survivors *to = &replay->tables[older], *from = &replay->tables[newer];
    to->count = 0;
    for (int32_t i = 0; i < from->count; i++) {
        Survivor survivor = from->items[i];
        survivor.storage = (int32_t)before[survivor.storage];
        if (survivor.storage < 0) return REPLAY_UNKNOWN;
        if (replay_keep(to, survivor)) return ARENA_NO_MEMORY;
    }
    from->count = 0;
    return 0;
}

static int64_t grown(const Growing *growing, int64_t size, int64_t done, int64_t all) {
    if (growing->first < 0) return size;
    int64_t difference = growing->last - growing->first;
    if (growing->step > 0 && growing->first + growing->step * all >= growing->last) {
        int64_t reached = growing->first + growing->step * done;
        return reached < growing->last ? reached : growing->last;
    }
    int64_t part = difference * done / all;
    return growing->first + part - (difference * done % all != 0 && difference < 0); /* rounded down, as in Python */
}

/* All tokens after the traced ones; `scratch` has room for the acts of any segment. */
int replay_tokens(Replay *replay, const Tokens *tokens, Act *scratch) {
    int64_t all = tokens->tokens - tokens->traced;
    for (int64_t token = tokens->traced + 1; token <= tokens->tokens; token++) {
        if (token % tokens->stride && token != tokens->tokens) continue;
        for (int64_t i = 0; i < tokens->age_count; i += tokens->traced) {
            replay->lost += replay->tables[tokens->ages[i]].count;
            for (int64_t age = 0; age + 1 < tokens->traced; age++) {
                int failed = replay_age(replay, tokens->ages[i + age], tokens->ages[i + age + 1], tokens->before);
                if (failed) return failed;
            }
        }
        int in_whole = token % (tokens->whole * tokens->stride) == 0 || token == tokens->tokens;
        for (int64_t i = 0; i < tokens->segment_count; i++) {
            const TokenSegment *segment = &tokens->segments[i];
            const Act *acts = in_whole ? segment->whole : segment->outline;
            int64_t count = in_whole ? segment->whole_count : segment->outline_count;
            for (int64_t at = 0; at < count; at++) {
                scratch[at] = acts[at];
                if (acts[at].kind == BIRTH)
                    scratch[at].size = grown(&tokens->growing[acts[at].storage], acts[at].size, token - tokens->traced, all);
            }
            int failed = replay_segment(replay, scratch, count, segment->base, segment->layer, 1);
            if (failed) return failed;
        }
    }
    return 0;
}
