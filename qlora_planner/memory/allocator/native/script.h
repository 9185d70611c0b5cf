/* A tape prepared for playing: the same as memory/replay/events.py and `Packing` of memory/replay/compiled.py. */

#ifndef QLORA_PLANNER_SCRIPT_H
#define QLORA_PLANNER_SCRIPT_H

#include "replay.h"

enum { OF_LAYER, OF_EMBEDDING, OF_HEAD };         /* names of segments that decide something */
enum { OF_FORWARD, OF_BACKWARD, OF_ZERO_GRAD };   /* stages that do */
enum { ON_HOST = 1, STREAMED = 2, WORKSPACE = 4, TAKEN = 8 }; /* what is known of a storage beforehand */

#define SCRIPT_NONE (-1)

typedef struct {
    int64_t start, stop, base, layer, stage, name;
} ScriptSegment;

typedef struct {
    int64_t storage, size;
} ScriptEvent;

typedef struct {
    int64_t checkpoints, every;                                           /* every: 0 for each layer */
    int64_t workspace, gradients, logits, checkpointed, activations;      /* positions of components */
} ScriptOptions;

typedef struct {
    const ScriptEvent *events;
    const ScriptSegment *segments;
    const int64_t *places, *kept;
    const uint8_t *known; /* by storage */
    int64_t event_count, segment_count, place_count, kept_count, storage_count;
    ScriptOptions options;
} Script;

/* Write the acts of each segment into `acts`, at the events' own places and `counts` of them, and by storage into `parts`
 * the number that storages which play the same part have in common. 0, ARENA_NO_MEMORY or REPLAY_UNKNOWN. */
int script_pack(const Script *script, Act *acts, int64_t *counts, int64_t *parts);

#endif
