/* Functions of the Python module that need no memory of their own: a tape packed for playing, and its moments. */

#include "module.h"

#include <stdlib.h>
#include <string.h>

#include "moments.h"
#include "script.h"

static PyObject *fail(int code) {
    if (code == ARENA_NO_MEMORY) return PyErr_NoMemory();
    PyErr_SetString(PyExc_KeyError, "the trace frees a storage that was never born");
    return NULL;
}

static PyObject *bytes_of(const void *items, size_t count, size_t size) {
    return PyBytes_FromStringAndSize(items, (Py_ssize_t)(count * size));
}

static int add(PyObject *list, PyObject *item) {
    int failed = item == NULL || PyList_Append(list, item);
    Py_XDECREF(item);
    return failed;
}

static int within(const Script *script) {
    for (int64_t i = 0; i < script->event_count; i++)
        if (script->events[i].storage < 0 || script->events[i].storage >= script->storage_count) return 0;
    for (int64_t i = 0; i < script->segment_count; i++) {
        const ScriptSegment *segment = &script->segments[i];
        if (segment->start < 0 || segment->start > segment->stop || segment->stop > script->event_count ||
            (script->options.every && segment->name == OF_LAYER && (segment->layer < 0 || segment->layer >= script->kept_count)))
            return 0;
    }
    return 1;
}

static PyObject *packed(const Script *script) {
    Act *acts = malloc(((size_t)script->event_count + 1) * sizeof(Act));
    int64_t *counts = malloc(((size_t)script->segment_count + 1) * sizeof(int64_t));
    int64_t *parts = malloc(((size_t)script->storage_count + 1) * sizeof(int64_t));
    int failed = acts && counts && parts ? script_pack(script, acts, counts, parts) : ARENA_NO_MEMORY;
    PyObject *list = failed ? NULL : PyList_New(0), *pair = NULL;
    for (int64_t i = 0; list && i < script->segment_count; i++)
        if (add(list, bytes_of(acts + script->segments[i].start, (size_t)counts[i], sizeof(Act)))) Py_CLEAR(list);
    if (list) {
        PyObject *numbers = bytes_of(parts, (size_t)script->storage_count, sizeof(int64_t));
        pair = numbers ? PyTuple_Pack(2, list, numbers) : NULL;
        Py_XDECREF(numbers);
        Py_DECREF(list);
    }
    free(acts);
    free(counts);
    free(parts);
    return failed ? fail(failed) : pair;
}

/* flat(events): pairs of a storage and a size as bytes, and the largest storage. */
static PyObject *flat(PyObject *module, PyObject *pairs) {
    (void)module;
    if (!PyTuple_Check(pairs)) return PyErr_Format(PyExc_TypeError, "takes a tuple of pairs");
    Py_ssize_t count = PyTuple_Size(pairs);
    int64_t largest = 0;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(ScriptEvent));
    ScriptEvent *events = bytes ? (ScriptEvent *)PyBytes_AsString(bytes) : NULL;
    for (Py_ssize_t i = 0; events && i < count; i++) {
        PyObject *pair = PyTuple_GetItem(pairs, i);
        PyObject *storage = PyTuple_GetItem(pair, 0), *size = PyTuple_GetItem(pair, 1);
        if (storage && size) events[i] = (ScriptEvent){PyLong_AsLongLong(storage), PyLong_AsLongLong(size)};
        if (PyErr_Occurred()) {
            Py_DECREF(bytes);
            return NULL;
        }
        if (events[i].storage > largest) largest = events[i].storage;
    }
    return events ? Py_BuildValue("NL", bytes, (long long)largest) : NULL;
}

/* numbered(events): a compiled tape's events as `flat` gives them, each size being its number. */
static PyObject *numbered(PyObject *module, PyObject *codes) {
    (void)module;
    if (!PyTuple_Check(codes)) return PyErr_Format(PyExc_TypeError, "takes a tuple of numbers");
    Py_ssize_t count = PyTuple_Size(codes);
    int64_t births = 0;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, count * (Py_ssize_t)sizeof(ScriptEvent));
    ScriptEvent *events = bytes ? (ScriptEvent *)PyBytes_AsString(bytes) : NULL;
    for (Py_ssize_t i = 0; events && i < count; i++) {
        int64_t code = PyLong_AsLongLong(PyTuple_GetItem(codes, i));
        if (code == -1 && PyErr_Occurred()) {
            Py_DECREF(bytes);
            return NULL;
        }
        events[i] = code > 0 ? (ScriptEvent){++births, code} : (ScriptEvent){-code, 0};
    }
    return bytes;
}

/* pack(events, segments, places, kept, known, options): bytes; see `Script`. The acts by segment, and the parts. */
static PyObject *pack(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    (void)module;
    Script script;
    int64_t options;
    if (given != 6) return PyErr_Format(PyExc_TypeError, "takes 6 arguments, not %zd", given);
    const ScriptOptions *chosen;
    if (read_items(args[0], sizeof(ScriptEvent), (const void **)&script.events, &script.event_count) ||
        read_items(args[1], sizeof(ScriptSegment), (const void **)&script.segments, &script.segment_count) ||
        read_items(args[2], 8, (const void **)&script.places, &script.place_count) ||
        read_items(args[3], 8, (const void **)&script.kept, &script.kept_count) ||
        read_items(args[4], 1, (const void **)&script.known, &script.storage_count) ||
        read_items(args[5], sizeof(ScriptOptions), (const void **)&chosen, &options))
        return NULL;
    if (options == 1) script.options = *chosen;
    if (options != 1 || !within(&script)) {
        PyErr_SetString(PyExc_ValueError, "not a tape");
        return NULL;
    }
    return packed(&script);
}

static const char *const NOTED = "moments";

static void destroy_noted(PyObject *capsule) {
    Noted *noted = PyCapsule_GetPointer(capsule, NOTED);
    if (noted) noted_destroy(noted);
}

/* The segment of each moment, and the moments themselves. */
static PyObject *noted_of(const Counter *counter) {
    Noted *noted = counter_noted(counter);
    PyObject *segments = noted ? PyList_New(0) : PyErr_NoMemory(), *pair = NULL;
    for (int32_t i = 0; segments && i < noted->count; i++)
        if (add(segments, PyLong_FromLongLong(noted->moments[i].segment))) Py_CLEAR(segments);
    PyObject *capsule = segments ? PyCapsule_New(noted, NOTED, destroy_noted) : NULL;
    if (capsule) pair = PyTuple_Pack(2, segments, capsule);
    if (noted && !capsule) noted_destroy(noted);
    Py_XDECREF(segments);
    Py_XDECREF(capsule);
    return pair;
}

/* levels(moments, table): by moment and row of the table, the most that is alive where columns weigh what it says. */
static PyObject *levels(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    (void)module;
    if (given != 2) return PyErr_Format(PyExc_TypeError, "takes 2 arguments, not %zd", given);
    const Noted *noted = PyCapsule_GetPointer(args[0], NOTED);
    const double *table;
    int64_t rows;
    if (noted == NULL || read_items(args[1], (int64_t)sizeof(double) * noted->width, (const void **)&table, &rows)) return NULL;
    PyObject *bytes = bytes_of(NULL, (size_t)(noted->count * rows), sizeof(double));
    if (bytes) noted_levels(noted, table, rows, (double *)PyBytes_AsString(bytes));
    return bytes;
}

static int count_round(Counter *counter, const Acts *acts, int64_t segments, const Step *steps, int64_t count) {
    for (const Step *step = steps; step < steps + count; step++) {
        int64_t table = step->base + 1 + step->layer;
        if (step->segment >= segments || step->base < 0 || table < 0 || table >= counter->replay.table_count)
            return REPLAY_UNKNOWN;
        int failed = step->segment == MOMENTS_OPTIMIZER
                         ? counter_optimizer(counter)
                         : counter_segment(counter, step->segment, acts[step->segment].acts, acts[step->segment].count,
                                           step->base, step->layer);
        if (failed) return failed;
    }
    return 0;
}

/* count(acts, parts, places, tables, width, gradients, rounds): the moments of each round; states are there after the
 * first, in the last column. */
static PyObject *count(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    (void)module;
    const int64_t *parts, *places;
    int64_t storages, layers, segments;
    long long n[3];
    if (given != 7 || !PyList_Check(args[0]) || !PyList_Check(args[6])) {
        PyErr_SetString(PyExc_TypeError, "takes a list, two bytes, three numbers and a list");
        return NULL;
    }
    if (read_items(args[1], 8, (const void **)&parts, &storages) || read_items(args[2], 8, (const void **)&places, &layers) ||
        read_numbers(args + 3, 3, 3, 3, n))
        return NULL;
    Acts *acts = read_acts(args[0], &segments);
    if (acts == NULL) return NULL;
    Counter counter;
    memset(&counter, 0, sizeof counter);
    counter.width = (int32_t)n[1];
    counter.replay.gradients = (int32_t)n[2];
    counter.replay.end = counter_uncount;
    counter.base = calloc((size_t)n[1], sizeof(double));
    PyObject *rounds = PyList_New(0);
    int failed = counter.base == NULL ? ARENA_NO_MEMORY : 0;
    if (!failed) failed = replay_use(&counter.replay, parts, (int32_t)storages, places, (int32_t)layers, (int32_t)n[0]);
    for (Py_ssize_t i = 0; rounds && !failed && i < PyList_Size(args[6]); i++) {
        const Step *steps;
        int64_t step_count;
        if (read_items(PyList_GetItem(args[6], i), sizeof(Step), (const void **)&steps, &step_count)) {
            Py_CLEAR(rounds);
            break;
        }
        failed = count_round(&counter, acts, segments, steps, step_count);
        if (!failed && add(rounds, noted_of(&counter))) Py_CLEAR(rounds);
        counter_forget(&counter);
        counter.base[counter.width - 1] = 1;
    }
    counter_destroy(&counter);
    free(acts);
    if (!failed) return rounds;
    Py_XDECREF(rounds);
    return fail(failed);
}

PyMethodDef module_functions[] = {
    {"flat", (PyCFunction)flat, METH_O, "flat(events): pairs of a storage and a size as bytes, and the largest storage."},
    {"numbered", numbered, METH_O, "numbered(events): those of a compiled tape as pairs of a storage and a number of a size."},
    {"pack", (PyCFunction)(void (*)(void))pack, METH_FASTCALL,
     "pack(events, segments, places, kept, known, options): the acts of each segment, and the part of each storage."},
    {"count", (PyCFunction)(void (*)(void))count, METH_FASTCALL,
     "count(acts, parts, places, tables, width, gradients, rounds): by round, the segment of each moment, and them."},
    {"levels", (PyCFunction)(void (*)(void))levels, METH_FASTCALL,
     "levels(moments, table): by moment and row of the table, the most that is alive."},
    {NULL, NULL, 0, NULL},
};
