/* What the two files of the Python module share. */

#ifndef QLORA_PLANNER_MODULE_H
#define QLORA_PLANNER_MODULE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <stdint.h>

/* Instead of the Py_RETURN macros: from Python 3.12 on these count no reference, and 3.11, which runs what they made, then
   loses its None. */
#define RETURN_NONE        \
    do {                   \
        Py_IncRef(Py_None); \
        return Py_None;    \
    } while (0)

/* Where bytes start, and how many items they hold. */
int read_items(PyObject *bytes, int64_t item, const void **into, int64_t *count);
/* Exactly or at most so many numbers. */
int read_numbers(PyObject *const *args, Py_ssize_t given, Py_ssize_t least, Py_ssize_t most, long long *into);
/* The acts of each segment of a script, as `pack` gives them: an array that the caller frees, or NULL. */
struct Acts *read_acts(PyObject *list, int64_t *count);

extern PyMethodDef module_functions[]; /* functions.c */

#endif
