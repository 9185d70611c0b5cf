#include "script.h"

#include <stdlib.h>
#include <string.h>

/* Where a storage that outlives its segment was born and ends, and its rank among those of its size and end there. */
typedef struct {
    int64_t born, size, rank, end; /* born: a segment's number, SCRIPT_NONE for a storage that dies at home */
} Origin;

typedef struct {
    int64_t size, end, count;
} Rank;

typedef struct {
    int64_t *died; /* by storage: the segment of its last death */
    int64_t *home; /* by storage: the segment in which it was born, SCRIPT_NONE before */
    Origin *origins;
    Rank *ranks; /* of the segment that is looked at */
    int64_t rank_count;
} Sheet;

static int64_t end_of(const ScriptSegment *born, const ScriptSegment *died) {
    if (died == NULL) return SCRIPT_NONE;
    int64_t away = born->name == OF_LAYER && died->name == OF_LAYER ? died->layer - born->layer : 0;
    if (away < -1 || away > 1) away = 2;
    return (died->stage * 64 + died->name) * 4 + away + 1;
}

static int64_t next_rank(Sheet *sheet, int64_t size, int64_t end) {
    for (int64_t i = 0; i < sheet->rank_count; i++)
        if (sheet->ranks[i].size == size && sheet->ranks[i].end == end) return sheet->ranks[i].count++;
    sheet->ranks[sheet->rank_count++] = (Rank){size, end, 1};
    return 0;
}

static int64_t component_of(const Script *script, const ScriptSegment *born, int64_t storage, const ScriptSegment *died) {
    const ScriptOptions *options = &script->options;
    if (script->known[storage] & WORKSPACE) return options->workspace;
    if (born->stage == OF_BACKWARD && (died == NULL || died->stage == OF_ZERO_GRAD)) return options->gradients;
    if (born->name == OF_HEAD) return options->logits;
    int inside = options->every && born->name == OF_LAYER && script->kept[born->layer] % options->every > 0;
    if (options->checkpoints && !inside && born->stage == OF_FORWARD && died != NULL && died != born &&
        (born->name == OF_LAYER || born->name == OF_EMBEDDING))
        return options->checkpointed;
    return options->activations;
}

/* Where a storage that dies in `here` is looked for; 0, or REPLAY_UNKNOWN. */
static int whereabouts(const Script *script, const ScriptSegment *born, const ScriptSegment *here, Act *act) {
    act->base = born->base;
    if (born->name != OF_LAYER) {
        act->where = EVERY_OUTSIDE;
        act->argument = -1;
        if (born->stage == OF_FORWARD && born->name == OF_EMBEDDING && here->stage == OF_BACKWARD && here->name == OF_LAYER) {
            act->where = SHARED;
            for (act->argument = 0; act->argument < script->place_count; act->argument++)
                if (script->places[act->argument] == here->layer) return 0;
            return REPLAY_UNKNOWN;
        }
    } else if (here->name != OF_LAYER) {
        act->where = ALL_OF_A_PART;
        act->argument = born->layer;
    } else {
        int64_t offset = born->layer - here->layer;
        int beside = offset >= -1 && offset <= 1;
        act->where = beside ? BESIDE : ONE_LAYER;
        if (!beside && (born->layer < 0 || born->layer >= script->kept_count)) return REPLAY_UNKNOWN;
        act->argument = beside ? offset : script->kept[born->layer];
    }
    return 0;
}

static int pack_segment(const Script *script, Sheet *sheet, int64_t number, Act *acts, int64_t *count) {
    const ScriptSegment *here = &script->segments[number];
    sheet->rank_count = 0;
    *count = 0;
    for (int64_t at = here->start; at < here->stop; at++) {
        int64_t storage = script->events[at].storage, size = script->events[at].size;
        if (script->known[storage] & TAKEN) continue;
        Act act = {.storage = storage};
        if (size) {
            const ScriptSegment *died = sheet->died[storage] < 0 ? NULL : &script->segments[sheet->died[storage]];
            sheet->home[storage] = number;
            if (died != here) {
                int64_t end = end_of(here, died);
                sheet->origins[storage] = (Origin){number, size, next_rank(sheet, size, end), end};
            }
            act.size = size;
            if (script->known[storage] & ON_HOST) {
                act.kind = BIRTH_ON_HOST;
                act.component = REPLAY_ON_HOST;
            } else {
                act.kind = script->known[storage] & STREAMED ? BIRTH_STREAMED : BIRTH;
                act.component = component_of(script, here, storage, died);
            }
        } else if (sheet->home[storage] == number) {
            act.kind = DEATH;
        } else if (sheet->home[storage] != SCRIPT_NONE) {
            act.kind = DEATH_ELSEWHERE;
            int64_t born = sheet->origins[storage].born;
            if (born == SCRIPT_NONE || whereabouts(script, &script->segments[born], here, &act)) return REPLAY_UNKNOWN;
        } else {
            continue;
        }
        acts[here->start + (*count)++] = act;
    }
    return 0;
}

/* Storages of the same size, rank and end get the same number. */
static int number_parts(const Script *script, const Origin *origins, int64_t *parts) {
    int64_t *first = malloc((size_t)(script->storage_count + 1) * sizeof(int64_t)), numbers = 0;
    if (first == NULL) return ARENA_NO_MEMORY;
    for (int64_t storage = 0; storage < script->storage_count; storage++) {
        parts[storage] = SCRIPT_NONE;
        const Origin *origin = &origins[storage];
        if (origin->born == SCRIPT_NONE) continue;
        int64_t number = 0;
        for (; number < numbers; number++) {
            const Origin *other = &origins[first[number]];
            if (other->size == origin->size && other->rank == origin->rank && other->end == origin->end) break;
        }
        if (number == numbers) first[numbers++] = storage;
        parts[storage] = number;
    }
    free(first);
    return 0;
}

int script_pack(const Script *script, Act *acts, int64_t *counts, int64_t *parts) {
    size_t storages = (size_t)script->storage_count + 1;
    Sheet sheet = {.died = malloc(storages * sizeof(int64_t)), .home = malloc(storages * sizeof(int64_t)),
                   .origins = malloc(storages * sizeof(Origin)),
                   .ranks = malloc(((size_t)script->event_count + 1) * sizeof(Rank))};
    int failed = ARENA_NO_MEMORY;
    if (sheet.died && sheet.home && sheet.origins && sheet.ranks) {
        failed = 0;
        for (size_t i = 0; i < storages; i++) {
            sheet.died[i] = sheet.home[i] = SCRIPT_NONE;
            sheet.origins[i].born = SCRIPT_NONE;
        }
        for (int64_t number = 0; number < script->segment_count; number++)
            for (int64_t at = script->segments[number].start; at < script->segments[number].stop; at++)
                if (!script->events[at].size) sheet.died[script->events[at].storage] = number;
        for (int64_t number = 0; number < script->segment_count && !failed; number++)
            failed = pack_segment(script, &sheet, number, acts, &counts[number]);
        if (!failed) failed = number_parts(script, sheet.origins, parts);
    }
    free(sheet.died);
    free(sheet.home);
    free(sheet.origins);
    free(sheet.ranks);
    return failed;
}
