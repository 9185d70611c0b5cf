/* The compiled twin of memory/allocator/caching.py and of what memory/replay/player.py does most: a Python type. */

#include "module.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <structmember.h>

#include "replay.h"

typedef struct {
    PyObject_HEAD
    long long address, size;
    int32_t number;
} BlockObject;

typedef struct {
    PyObject_HEAD
    Replay replay;
    PyObject *parts, *places, *limit; /* bytes that the replay reads; what it was made with */
} MemoryObject;

static PyTypeObject *block_type;

static PyObject *fail(MemoryObject *self, int code) {
    if (code == ARENA_NO_MEMORY) return PyErr_NoMemory();
    if (code == REPLAY_UNKNOWN) {
        PyErr_SetString(PyExc_KeyError, "the trace frees a storage that was never born");
        return NULL;
    }
    PyObject *module = PyImport_ImportModule("qlora_planner.memory.allocator.caching");
    PyObject *kind = module ? PyObject_GetAttrString(module, "OutOfMemory") : NULL;
    Arena *arena = &self->replay.arena;
    PyObject *error = kind ? PyObject_CallFunction(kind, "LLL", (long long)arena->asked, (long long)arena->allocated,
                                                   (long long)arena->reserved) : NULL;
    if (error) PyErr_SetObject(kind, error);
    Py_XDECREF(error);
    Py_XDECREF(kind);
    Py_XDECREF(module);
    return NULL;
}

int read_numbers(PyObject *const *args, Py_ssize_t given, Py_ssize_t least, Py_ssize_t most, long long *into) {
    if (given < least || given > most) {
        PyErr_Format(PyExc_TypeError, "takes %zd to %zd arguments, not %zd", least, most, given);
        return -1;
    }
    for (Py_ssize_t i = 0; i < given; i++) {
        into[i] = PyLong_AsLongLong(args[i]);
        if (into[i] == -1 && PyErr_Occurred()) return -1;
    }
    return 0;
}

int read_items(PyObject *bytes, int64_t item, const void **into, int64_t *count) {
    char *start;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(bytes, &start, &size)) return -1;
    *into = start;
    *count = size / item;
    return 0;
}

Acts *read_acts(PyObject *list, int64_t *count) {
    *count = PyList_Size(list);
    Acts *acts = *count < 0 ? NULL : calloc((size_t)*count + 1, sizeof(Acts));
    for (int64_t i = 0; acts && i < *count; i++)
        if (read_items(PyList_GetItem(list, i), sizeof(Act), (const void **)&acts[i].acts, &acts[i].count)) {
            free(acts);
            return NULL;
        }
    return acts || PyErr_Occurred() ? acts : (Acts *)PyErr_NoMemory();
}

static PyObject *wrap(MemoryObject *self, int32_t number) {
    if (number == ARENA_NONE) RETURN_NONE;
    if (number < 0) return fail(self, number);
    BlockObject *block = PyObject_New(BlockObject, block_type);
    if (block == NULL) return NULL;
    block->number = number;
    block->address = self->replay.arena.blocks[number].address;
    block->size = self->replay.arena.blocks[number].size;
    return (PyObject *)block;
}

static int number_of(PyObject *block, int32_t *number) {
    if (block == Py_None) {
        *number = ARENA_NONE;
        return 0;
    }
    if (Py_TYPE(block) != block_type) {
        PyErr_SetString(PyExc_TypeError, "not a block of this memory");
        return -1;
    }
    *number = ((BlockObject *)block)->number;
    return 0;
}

static int valid_stream(long long stream) {
    if (stream >= 0 && stream < ARENA_STREAMS) return 1;
    PyErr_SetString(PyExc_ValueError, "no such stream");
    return 0;
}

/* ---- as CachingAllocator ---- */

static PyObject *memory_malloc(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    long long n[2] = {0, 0};
    if (read_numbers(args, given, 1, 2, n) || !valid_stream(n[1])) return NULL;
    return wrap(self, arena_malloc(&self->replay.arena, n[0], (int)n[1]));
}

static PyObject *memory_free(MemoryObject *self, PyObject *block) {
    int32_t number;
    if (number_of(block, &number)) return NULL;
    if (arena_free(&self->replay.arena, number)) return PyErr_NoMemory();
    RETURN_NONE;
}

static PyObject *memory_empty_cache(MemoryObject *self, PyObject *nothing) {
    (void)nothing;
    if (arena_empty_cache(&self->replay.arena)) return PyErr_NoMemory();
    RETURN_NONE;
}

static PyObject *memory_reset_peaks(MemoryObject *self, PyObject *nothing) {
    (void)nothing;
    arena_reset_peaks(&self->replay.arena);
    RETURN_NONE;
}

/* ---- as TraceReplayer ---- */

static PyObject *memory_begin(MemoryObject *self, PyObject *nothing) {
    (void)nothing;
    replay_begin(&self->replay);
    RETURN_NONE;
}

static PyObject *memory_start(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    long long n[REPLAY_COMPONENTS + 1] = {0};
    if (read_numbers(args, given, 2, REPLAY_COMPONENTS + 1, n)) return NULL;
    self->replay.gradients = (int32_t)n[0];
    self->replay.components = (int32_t)given - 1;
    for (int i = 0; i < self->replay.components; i++) self->replay.totals[i] = n[i + 1];
    return memory_begin(self, NULL);
}

static PyObject *components_of(MemoryObject *self, const int64_t *bytes) {
    PyObject *sizes = PyTuple_New(self->replay.components);
    for (int i = 0; sizes && i < self->replay.components; i++) {
        PyObject *size = PyLong_FromLongLong(bytes[i]);
        if (size == NULL || PyTuple_SetItem(sizes, i, size)) Py_CLEAR(sizes);
    }
    return sizes;
}

static PyObject *memory_components(MemoryObject *self, PyObject *nothing) {
    (void)nothing;
    return components_of(self, self->replay.at_peak);
}

static int valid_component(MemoryObject *self, long long component) {
    if (component >= 0 && component < self->replay.components) return 1;
    PyErr_SetString(PyExc_ValueError, "no such component");
    return 0;
}

static PyObject *memory_take(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    long long n[3] = {0, 0, 0};
    if (read_numbers(args, given, 2, 3, n) || !valid_component(self, n[1]) || !valid_stream(n[2])) return NULL;
    return wrap(self, replay_malloc(&self->replay, n[0], (int)n[1], (int)n[2]));
}

static PyObject *memory_give(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    int32_t number;
    long long component = given == 2 ? PyLong_AsLongLong(args[1]) : -1;
    if (PyErr_Occurred() || !valid_component(self, component) || number_of(args[0], &number)) return NULL;
    if (replay_free(&self->replay, number, (int)component)) return PyErr_NoMemory();
    RETURN_NONE;
}

/* use(parts, places, tables): a script of so many storages and layers, and room for so many tables. */
static PyObject *memory_use(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    char *parts, *places;
    Py_ssize_t part_bytes, place_bytes;
    if (given != 3) return PyErr_Format(PyExc_TypeError, "takes 3 arguments, not %zd", given);
    long long tables = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred() || PyBytes_AsStringAndSize(args[0], &parts, &part_bytes) ||
        PyBytes_AsStringAndSize(args[1], &places, &place_bytes))
        return NULL;
    if (replay_use(&self->replay, (const int64_t *)parts, (int32_t)(part_bytes / 8), (const int64_t *)places,
                   (int32_t)(place_bytes / 8), (int32_t)tables))
        return PyErr_NoMemory();
    Py_INCREF(args[0]);
    Py_INCREF(args[1]);
    Py_XDECREF(self->parts);
    Py_XDECREF(self->places);
    self->parts = args[0];
    self->places = args[1];
    RETURN_NONE;
}

static int valid_table(MemoryObject *self, long long table) {
    if (table >= 0 && table < self->replay.table_count) return 1;
    PyErr_SetString(PyExc_IndexError, "no such table");
    return 0;
}

/* segment(acts, base, layer, last=1): play it, or a piece of it; `acts` are of the storages of the script in use. */
static PyObject *memory_segment(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    char *acts;
    Py_ssize_t size;
    long long n[3] = {0, 0, 1};
    if (given < 3) return PyErr_Format(PyExc_TypeError, "takes 3 or 4 arguments, not %zd", given);
    if (PyBytes_AsStringAndSize(args[0], &acts, &size) || read_numbers(args + 1, given - 1, 2, 3, n)) return NULL;
    if (!valid_table(self, n[0]) || !valid_table(self, n[0] + 1 + n[1])) return NULL;
    int failed = replay_segment(&self->replay, (const Act *)acts, size / (Py_ssize_t)sizeof(Act), n[0], n[1], n[2] != 0);
    if (failed) return fail(self, failed);
    RETURN_NONE;
}

static PyObject *figures_of(MemoryObject *self, const Phase *phase) {
    if (!phase->noted) RETURN_NONE;
    PyObject *components = components_of(self, phase->components);
    if (components == NULL) return NULL;
    return Py_BuildValue("LLLLN", (long long)phase->live, (long long)phase->allocated, (long long)phase->reserved,
                         (long long)phase->non_releasable, components);
}

static int valid_steps(MemoryObject *self, const Step *steps, int64_t count, int64_t segments, int64_t phases) {
    for (const Step *step = steps; step < steps + count; step++) {
        if (step->segment >= segments || step->phase < 0 || step->phase >= phases) {
            PyErr_SetString(PyExc_IndexError, "no such segment or phase");
            return 0;
        }
        if (step->segment >= 0 && (!valid_table(self, step->base) || !valid_table(self, step->base + 1 + step->layer)))
            return 0;
    }
    return 1;
}

/* stretch(acts, steps, phases): play the steps; by phase None or what it came to: live, allocated, reserved, pinned and
 * components. */
static PyObject *memory_stretch(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    const Step *steps;
    int64_t step_count, segments;
    if (given != 3 || !PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "takes a list, bytes and a number");
        return NULL;
    }
    long long phases = PyLong_AsLongLong(args[2]);
    if (PyErr_Occurred() || phases < 0 || read_items(args[1], sizeof(Step), (const void **)&steps, &step_count)) return NULL;
    Acts *acts = read_acts(args[0], &segments);
    Phase *noted = acts ? calloc((size_t)phases + 1, sizeof(Phase)) : NULL;
    PyObject *list = NULL;
    if (acts && !noted) PyErr_NoMemory();
    if (noted && valid_steps(self, steps, step_count, segments, phases)) {
        int failed = replay_stretch(&self->replay, acts, steps, step_count, noted);
        list = failed ? fail(self, failed) : PyList_New(0);
        for (long long i = 0; list && i < phases; i++) {
            PyObject *figures = figures_of(self, &noted[i]);
            if (figures == NULL || PyList_Append(list, figures)) Py_CLEAR(list);
            Py_XDECREF(figures);
        }
    }
    free(noted);
    free(acts);
    return list;
}

/* take_all(sizes, component, pass): allocate each in turn, and with `pass` then free each in turn. */
static PyObject *memory_take_all(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    const int64_t *sizes;
    int64_t count;
    long long n[2];
    if (given != 3) return PyErr_Format(PyExc_TypeError, "takes 3 arguments, not %zd", given);
    if (read_items(args[0], 8, (const void **)&sizes, &count) || read_numbers(args + 1, 2, 2, 2, n) ||
        !valid_component(self, n[0]))
        return NULL;
    int32_t *blocks = malloc(((size_t)count + 1) * sizeof(int32_t));
    if (blocks == NULL) return PyErr_NoMemory();
    int failed = 0;
    for (int64_t i = 0; i < count && !failed; i++) {
        blocks[i] = replay_malloc(&self->replay, sizes[i], (int)n[0], 0);
        if (blocks[i] < ARENA_NONE) failed = blocks[i];
    }
    for (int64_t i = 0; n[1] && i < count && !failed; i++) failed = replay_free(&self->replay, blocks[i], (int)n[0]);
    free(blocks);
    if (failed) return fail(self, failed);
    RETURN_NONE;
}

/* recast(sizes, blocks, component): allocate each size, and then free the block in whose place it comes. */
static PyObject *memory_recast(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    const int64_t *sizes;
    int64_t count;
    long long component;
    if (given != 3 || !PyList_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "takes bytes, a list and a number");
        return NULL;
    }
    if (read_items(args[0], 8, (const void **)&sizes, &count) || read_numbers(args + 2, 1, 1, 1, &component) ||
        !valid_component(self, component))
        return NULL;
    for (int64_t i = 0; i < count && i < PyList_Size(args[1]); i++) {
        int32_t block;
        if (number_of(PyList_GetItem(args[1], i), &block)) return NULL;
        int32_t cast = replay_malloc(&self->replay, sizes[i], (int)component, 0);
        int failed = cast < ARENA_NONE ? cast : replay_free(&self->replay, block, (int)component);
        if (failed) return fail(self, failed);
    }
    RETURN_NONE;
}

/* free_all(table, component): free what the table has of it. */
static PyObject *memory_free_all(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    long long n[2];
    if (read_numbers(args, given, 2, 2, n) || !valid_table(self, n[0])) return NULL;
    int failed = replay_free_all(&self->replay, n[0], (int)n[1]);
    if (failed) return fail(self, failed);
    RETURN_NONE;
}

/* One segment of a token: (whole acts, outlined acts, base, layer). */
static int read_segment(MemoryObject *self, PyObject *given, TokenSegment *segment) {
    PyObject *parts[4];
    if (!PyTuple_Check(given) || PyTuple_Size(given) != 4) {
        PyErr_SetString(PyExc_TypeError, "a token's segment is a tuple of four");
        return -1;
    }
    for (int i = 0; i < 4; i++) parts[i] = PyTuple_GetItem(given, i);
    long long n[2];
    if (read_items(parts[0], sizeof(Act), (const void **)&segment->whole, &segment->whole_count) ||
        read_items(parts[1], sizeof(Act), (const void **)&segment->outline, &segment->outline_count) ||
        read_numbers(parts + 2, 2, 2, 2, n) || !valid_table(self, n[0]) || !valid_table(self, n[0] + 1 + n[1]))
        return -1;
    segment->base = n[0];
    segment->layer = n[1];
    return 0;
}

/* tokens(segments, growing, before, ages, traced, tokens, whole, stride): see `Tokens`; the first four are a list and bytes. */
static PyObject *memory_tokens(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    Tokens tokens;
    int64_t growing_count, before_count;
    long long n[4];
    if (given != 8 || !PyList_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "takes a list, three bytes and four numbers");
        return NULL;
    }
    if (read_items(args[1], sizeof(Growing), (const void **)&tokens.growing, &growing_count) ||
        read_items(args[2], 8, (const void **)&tokens.before, &before_count) ||
        read_items(args[3], 8, (const void **)&tokens.ages, &tokens.age_count) || read_numbers(args + 4, 4, 4, 4, n))
        return NULL;
    tokens.traced = n[0];
    tokens.tokens = n[1];
    tokens.whole = n[2];
    tokens.stride = n[3];
    tokens.segment_count = PyList_Size(args[0]);
    for (int64_t i = 0; i < tokens.age_count; i++)
        if (!valid_table(self, tokens.ages[i])) return NULL;
    TokenSegment *segments = calloc((size_t)tokens.segment_count + 1, sizeof(TokenSegment));
    if (segments == NULL) return PyErr_NoMemory();
    int64_t longest = 1;
    for (int64_t i = 0; i < tokens.segment_count; i++) {
        if (read_segment(self, PyList_GetItem(args[0], i), &segments[i])) {
            free(segments);
            return NULL;
        }
        if (segments[i].whole_count > longest) longest = segments[i].whole_count;
    }
    tokens.segments = segments;
    Act *scratch = malloc((size_t)longest * sizeof(Act));
    int failed = scratch == NULL ? ARENA_NO_MEMORY : replay_tokens(&self->replay, &tokens, scratch);
    free(scratch);
    free(segments);
    if (failed) return fail(self, failed);
    RETURN_NONE;
}

/* ---- the types ---- */

static PyObject *memory_new(PyTypeObject *type, PyObject *args, PyObject *named) {
    static char *names[] = {"limit_bytes", "expandable", "apart", NULL};
    int expandable = 0, apart = 0;
    PyObject *limit = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, named, "|Opp", names, &limit, &expandable, &apart)) return NULL;
    long long bytes = limit == Py_None ? -1 : PyLong_AsLongLong(limit);
    if (PyErr_Occurred()) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    MemoryObject *self = (MemoryObject *)alloc(type, 0);
    if (self == NULL) return NULL;
    arena_init(&self->replay.arena, limit == Py_None ? -1 : bytes < 0 ? 0 : bytes);
    self->replay.births = -1;
    Py_INCREF(limit);
    self->limit = limit;
    if (expandable && arena_expands(&self->replay.arena, apart)) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

/* Another device with the same blocks under the same numbers, before a trace is played. */
/* copy(limit_bytes): under this limit, or without one given under its own. */
static PyObject *memory_copy(MemoryObject *self, PyObject *const *args, Py_ssize_t given) {
    long long limit = self->replay.arena.limit;
    if (read_numbers(args, given, 0, 1, &limit)) return NULL;
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    MemoryObject *copy = (MemoryObject *)alloc(type, 0);
    if (copy == NULL) return NULL;
    copy->replay.births = -1;
    copy->limit = given ? args[0] : self->limit;
    Py_INCREF(copy->limit);
    if (arena_copy(&copy->replay.arena, &self->replay.arena)) {
        Py_DECREF(copy);
        return PyErr_NoMemory();
    }
    copy->replay.arena.limit = given && limit < 0 ? 0 : limit;
    return (PyObject *)copy;
}

static void memory_dealloc(MemoryObject *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    replay_destroy(&self->replay);
    Py_XDECREF(self->parts);
    Py_XDECREF(self->places);
    Py_XDECREF(self->limit);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static void block_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

#define FAST(name, function, doc) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, doc}

static PyMethodDef memory_methods[] = {
    FAST("malloc", memory_malloc, "malloc(size_bytes, side_stream=0): a block, or None for an empty tensor."),
    {"free", (PyCFunction)memory_free, METH_O, "free(block): give it back to the cache."},
    {"empty_cache", (PyCFunction)memory_empty_cache, METH_NOARGS, "Give wholly free segments back to the driver."},
    {"reset_peaks", (PyCFunction)memory_reset_peaks, METH_NOARGS, "Peaks are what is there now."},
    {"begin", (PyCFunction)memory_begin, METH_NOARGS, "Peaks, and components at the peak, are what is there now."},
    FAST("copy", memory_copy, "copy(limit_bytes): another device with the same blocks, under this limit or its own."),
    {"components", (PyCFunction)memory_components, METH_NOARGS, "Bytes by component when most was allocated."},
    FAST("start", memory_start, "start(gradients, *bytes): the position of gradients, and bytes by component."),
    FAST("take", memory_take, "take(size_bytes, component, stream=0): malloc, counted for a component."),
    FAST("give", memory_give, "give(block, component): free, counted for a component."),
    FAST("use", memory_use, "use(parts, places, tables): the script whose segments are played next."),
    FAST("segment", memory_segment, "segment(acts, base, layer, last=True): play one, or a piece of it."),
    FAST("stretch", memory_stretch, "stretch(acts, steps, phases): play steps; what each phase came to."),
    FAST("recast", memory_recast, "recast(sizes, blocks, component): allocate each size, then free the block before it."),
    FAST("take_all", memory_take_all, "take_all(sizes, component, pass): allocate each, and with `pass` free each."),
    FAST("free_all", memory_free_all, "free_all(table, component): free what a table has of a component."),
    FAST("tokens", memory_tokens, "tokens(segments, growing, before, ages, traced, tokens, whole, stride): play later tokens."),
    {NULL, NULL, 0, NULL},
};

#define FIGURE(name, field) \
    {name, T_LONGLONG, offsetof(MemoryObject, replay) + offsetof(Replay, field), READONLY, NULL}

static PyMemberDef memory_members[] = {
    FIGURE("allocated", arena.allocated),
    FIGURE("peak_allocated", arena.peak_allocated),
    FIGURE("reserved", arena.reserved),
    FIGURE("peak_reserved", arena.peak_reserved),
    FIGURE("non_releasable_bytes", arena.non_releasable),
    FIGURE("peak_non_releasable_bytes", arena.peak_non_releasable),
    FIGURE("lost", lost),
    FIGURE("host_peak", host_peak),
    {"limit_bytes", T_OBJECT, offsetof(MemoryObject, limit), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMemberDef block_members[] = {
    {"address", T_LONGLONG, offsetof(BlockObject, address), READONLY, NULL},
    {"size", T_LONGLONG, offsetof(BlockObject, size), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot memory_slots[] = {
    {Py_tp_doc, "torch's caching allocator, simulated, with what a trace's storages are for."},
    {Py_tp_new, memory_new},
    {Py_tp_dealloc, memory_dealloc},
    {Py_tp_methods, memory_methods},
    {Py_tp_members, memory_members},
    {0, NULL},
};
static PyType_Slot block_slots[] = {
    {Py_tp_doc, "A piece of a segment."}, {Py_tp_dealloc, block_dealloc}, {Py_tp_members, block_members}, {0, NULL},
};
static PyType_Spec memory_spec = {
    "qlora_planner.memory.allocator.native._native.NativeMemory", sizeof(MemoryObject), 0, Py_TPFLAGS_DEFAULT, memory_slots,
};
static PyType_Spec block_spec = {
    "qlora_planner.memory.allocator.native._native.NativeBlock", sizeof(BlockObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, block_slots,
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, "_native", "torch's caching allocator and the replay of traces, compiled.", -1,
    NULL, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void) {
    module_def.m_methods = module_functions;
    PyObject *module = PyModule_Create(&module_def);
    if (module == NULL) return NULL;
    PyObject *memory = PyType_FromSpec(&memory_spec);
    block_type = (PyTypeObject *)PyType_FromSpec(&block_spec);
    if (memory == NULL || block_type == NULL || PyModule_AddObject(module, "NativeMemory", memory) < 0
        || PyModule_AddStringConstant(module, "SOURCES", SOURCES) < 0) {
        Py_XDECREF(memory);
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
