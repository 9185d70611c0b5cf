#include "moments.h"

#include <stdlib.h>
#include <string.h>

static int step(Counter *counter, int32_t signed_column) {
    if (counter->step_count == counter->step_capacity &&
        arena_grow((void **)&counter->steps, &counter->step_capacity, counter->step_count + 1, sizeof(int32_t)))
        return ARENA_NO_MEMORY;
    counter->steps[counter->step_count++] = signed_column;
    return 0;
}

/* What a survivor's end is here: its column counts one less. */
int counter_uncount(Replay *replay, const Survivor *survivor) {
    if (survivor->component == REPLAY_ON_HOST) return 0;
    return step((Counter *)replay, -survivor->block);
}

static int play(Counter *counter, const Act *acts, int64_t count, const int32_t *freed, int32_t *births) {
    Replay *replay = &counter->replay;
    int32_t next = 0; /* of those that die elsewhere, whose steps `freed` has: one after the other, 0 behind each */
    for (const Act *act = acts; act < acts + count; act++) {
        Local *local = &replay->here[act->storage];
        int32_t column = (int32_t)act->size; /* sizes are their own numbers, counted from 1 */
        int failed = 0;
        if (act->kind == BIRTH || act->kind == BIRTH_STREAMED) {
            if (replay->is_kept[act->storage]) {
                if (act->component == replay->gradients) /* added to the gradient that is there, and gone */
                    failed = step(counter, column) || step(counter, -column) ? ARENA_NO_MEMORY : 0;
                if (failed) return failed;
                continue;
            }
            failed = step(counter, column);
        } else if (act->kind == DEATH) {
            if (!local->alive) return REPLAY_UNKNOWN;
            local->alive = 0;
            failed = counter_uncount(replay, &local->is);
        } else if (act->kind == DEATH_ELSEWHERE) {
            for (; freed[next] && !failed; next++) failed = step(counter, freed[next]);
            next++;
        }
        if (failed) return failed;
        if (act->kind == DEATH || act->kind == DEATH_ELSEWHERE) continue;
        int32_t kind = act->kind == BIRTH_ON_HOST ? REPLAY_ON_HOST : 0;
        local->is = (Survivor){(int32_t)act->storage, column, kind, 0};
        local->alive = 1;
        replay->born[(*births)++] = (int32_t)act->storage;
    }
    return 0;
}

/* The moment of this segment that does just what was played; a new one where there is none. */
static Moment *moment_of(Counter *counter, int64_t segment) {
    size_t bytes = (size_t)counter->step_count * sizeof(int32_t);
    for (int32_t i = 0; i < counter->moment_count; i++) {
        Moment *known = &counter->moments[i];
        if (known->segment == segment && known->step_count == counter->step_count &&
            (bytes == 0 || !memcmp(known->steps, counter->steps, bytes)))
            return known;
    }
    if (arena_grow((void **)&counter->moments, &counter->moment_capacity, counter->moment_count + 1, sizeof(Moment)))
        return NULL;
    Moment *moment = &counter->moments[counter->moment_count];
    *moment = (Moment){.segment = segment, .step_count = counter->step_count, .steps = malloc(bytes + 1)};
    if (moment->steps == NULL) return NULL;
    memcpy(moment->steps, counter->steps, bytes);
    counter->moment_count++;
    return moment;
}

/* Whether everything that is alive in one row is in the other too: then no size makes it the higher one. */
static int within(const double *row, const double *other, int32_t width) {
    for (int32_t i = 0; i < width; i++)
        if (row[i] > other[i]) return 0;
    return 1;
}

static int note(Counter *counter, int64_t segment) {
    Moment *moment = moment_of(counter, segment);
    size_t row = (size_t)counter->width * sizeof(double);
    if (moment == NULL) return ARENA_NO_MEMORY;
    if (moment->before_count) { /* from layer to layer it grows or shrinks, mostly */
        double *last = moment->before + (size_t)(moment->before_count - 1) * (size_t)counter->width;
        if (within(counter->base, last, counter->width)) return 0;
        if (within(last, counter->base, counter->width)) {
            memcpy(last, counter->base, row);
            return 0;
        }
    }
    if (arena_grow((void **)&moment->before, &moment->before_capacity, moment->before_count + 1, (int64_t)row))
        return ARENA_NO_MEMORY;
    memcpy(moment->before + (size_t)moment->before_count++ * (size_t)counter->width, counter->base, row);
    return 0;
}

int counter_segment(Counter *counter, int64_t segment, const Act *acts, int64_t count, int64_t base, int64_t layer) {
    Replay *replay = &counter->replay;
    Survivors *own = &replay->tables[base + 1 + layer];
    int failed = 0;
    counter->step_count = 0;
    for (const Act *act = acts; act < acts + count && !failed; act++)
        if (act->kind == DEATH_ELSEWHERE) {
            failed = replay_drop_elsewhere(replay, act, layer, own);
            if (!failed) failed = step(counter, 0);
        }
    int32_t *freed = failed ? NULL : malloc(((size_t)counter->step_count + 1) * sizeof(int32_t));
    if (freed == NULL) return failed ? failed : ARENA_NO_MEMORY;
    memcpy(freed, counter->steps, (size_t)counter->step_count * sizeof(int32_t));
    counter->step_count = 0;
    for (int32_t i = 0; i < own->count; i++) replay->is_kept[own->items[i].storage] = 1;
    int32_t births = 0;
    failed = play(counter, acts, count, freed, &births);
    free(freed);
    for (int32_t i = 0; i < own->count; i++) replay->is_kept[own->items[i].storage] = 0;
    for (int32_t i = 0; i < births; i++) {
        Local *local = &replay->here[replay->born[i]];
        if (local->alive && !failed) failed = replay_keep(own, local->is);
        local->alive = 0;
    }
    if (!failed) failed = note(counter, segment);
    if (failed) return failed;
    for (int32_t i = 0; i < counter->step_count; i++) {
        int32_t column = counter->steps[i];
        counter->base[column > 0 ? column - 1 : -column - 1] += column > 0 ? 1 : -1;
    }
    return 0;
}

int counter_optimizer(Counter *counter) {
    counter->step_count = 0;
    return note(counter, MOMENTS_OPTIMIZER);
}

void counter_forget(Counter *counter) {
    for (int32_t i = 0; i < counter->moment_count; i++) counter->moments[i].before_count = 0;
}

static int copy_of(Moment *copy, const Moment *moment, int32_t width) {
    size_t steps = (size_t)moment->step_count * sizeof(int32_t);
    size_t before = (size_t)moment->before_count * (size_t)width * sizeof(double);
    *copy = *moment;
    copy->steps = malloc(steps + 1);
    copy->before = malloc(before + 1);
    if (copy->steps == NULL || copy->before == NULL) return ARENA_NO_MEMORY;
    memcpy(copy->steps, moment->steps, steps);
    memcpy(copy->before, moment->before, before);
    return 0;
}

Noted *counter_noted(const Counter *counter) {
    Noted *noted = calloc(1, sizeof(Noted));
    if (noted == NULL) return NULL;
    noted->width = counter->width;
    noted->moments = malloc(((size_t)counter->moment_count + 1) * sizeof(Moment));
    for (int32_t i = 0; noted->moments && i < counter->moment_count; i++)
        if (counter->moments[i].before_count &&
            copy_of(&noted->moments[noted->count++], &counter->moments[i], counter->width)) {
            noted_destroy(noted);
            return NULL;
        }
    if (noted->moments) return noted;
    free(noted);
    return NULL;
}

static double highest_before(const Moment *moment, const double *values, int32_t width) {
    double highest = 0;
    for (int32_t i = 0; i < moment->before_count; i++) {
        const double *before = moment->before + (size_t)i * (size_t)width;
        double level = 0;
        for (int32_t column = 0; column < width; column++) level += before[column] * values[column];
        if (level > highest) highest = level;
    }
    return highest;
}

static double highest_step(const Moment *moment, const double *values, int32_t width) {
    if (moment->segment == MOMENTS_OPTIMIZER) {
        double norms = values[width - MOMENTS_NORMS], scratch = values[width - MOMENTS_SCRATCH];
        return norms > scratch ? norms : scratch;
    }
    double level = 0, highest = 0; /* nothing but what was there is a moment too */
    for (int32_t i = 0; i < moment->step_count; i++) {
        int32_t column = moment->steps[i];
        level += column > 0 ? values[column - 1] : -values[-column - 1];
        if (level > highest) highest = level;
    }
    return highest;
}

void noted_levels(const Noted *noted, const double *table, int64_t rows, double *levels) {
    for (int32_t i = 0; i < noted->count; i++)
        for (int64_t row = 0; row < rows; row++) {
            const Moment *moment = &noted->moments[i];
            const double *values = table + row * noted->width;
            *levels++ = highest_before(moment, values, noted->width) + highest_step(moment, values, noted->width);
        }
}

void noted_destroy(Noted *noted) {
    for (int32_t i = 0; i < noted->count; i++) {
        free(noted->moments[i].steps);
        free(noted->moments[i].before);
    }
    free(noted->moments);
    free(noted);
}

void counter_destroy(Counter *counter) {
    for (int32_t i = 0; i < counter->moment_count; i++) {
        free(counter->moments[i].steps);
        free(counter->moments[i].before);
    }
    free(counter->moments);
    free(counter->steps);
    free(counter->base);
    replay_destroy(&counter->replay);
}
