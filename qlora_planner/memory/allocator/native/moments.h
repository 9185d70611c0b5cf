/* Moments of a tape, counted by size: the same as `_Counting` of memory/sweep/segments.py. */

#ifndef QLORA_PLANNER_MOMENTS_H
#define QLORA_PLANNER_MOMENTS_H

#include "replay.h"

#define MOMENTS_OPTIMIZER (-1) /* stands in for a segment: the optimizer's own step */
enum { MOMENTS_STATES = 1, MOMENTS_SCRATCH, MOMENTS_NORMS }; /* columns, counted from the last one backwards */

/* What one traced segment does where it does the same: its steps, and what was alive before it, a row a layer. */
typedef struct {
    int64_t segment;
    int32_t *steps; /* columns counted from 1, below 0 where one dies */
    int32_t step_count;
    double *before;
    int32_t before_count, before_capacity;
} Moment;

typedef struct {
    Replay replay; /* tables of survivors, whose `block` is a column here; nothing is allocated */
    int32_t width; /* columns */
    double *base;
    Moment *moments;
    int32_t moment_count, moment_capacity;
    int32_t *steps; /* of the segment that is played */
    int32_t step_count, step_capacity;
} Counter;

/* Play a segment for a layer: what it does is noted as a moment of its kind. 0, or an error. */
int counter_segment(Counter *counter, int64_t segment, const Act *acts, int64_t count, int64_t base, int64_t layer);
int counter_optimizer(Counter *counter);
int counter_uncount(Replay *replay, const Survivor *survivor); /* what ends counts one less */
void counter_forget(Counter *counter); /* what was alive before each moment */
void counter_destroy(Counter *counter);

/* What was noted up to now: the moments that have something before them. */
typedef struct {
    Moment *moments;
    int32_t count, width;
} Noted;

Noted *counter_noted(const Counter *counter); /* NULL without memory */
/* The most that is alive in each moment where the columns weigh so much: `levels` by moment and row of the table. */
void noted_levels(const Noted *noted, const double *table, int64_t rows, double *levels);
void noted_destroy(Noted *noted);

#endif
