// A driver that plays a part: KEDGE_FAKE_CUDA says which. Memory is the host's, kernels do nothing.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_PTX = 218, NO_COMPILER = 221, UNSUPPORTED_PTX = 222, LOST = 719 };

static int launches, lost, copying;

static int plays(const char *part) {
    const char *said = getenv("KEDGE_FAKE_CUDA");
    return said && strcmp(said, part) == 0;
}

// Pinned memory: what it is, and whether the device still reads it. An event stands for what was copied last before it.
static struct { void *start; int busy; } pinned[8];
static int pinned_count, copied_last = -1;

// What every call says once the device is lost.
static unsigned result(void) { return lost ? LOST : 0; }

unsigned cuDriverGetVersion(int *version) {
    *version = plays("old") ? 11030 : 12020;
    return 0;
}

unsigned cuInit(unsigned flags) { return plays("no-device") ? NO_DEVICE : plays("broken") ? 12345 : 0; }

unsigned cuGetErrorName(unsigned code, const char **name) {
    switch (code) {
    case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return 0;
    case INVALID_PTX: *name = "CUDA_ERROR_INVALID_PTX"; return 0;
    case NO_COMPILER: *name = "CUDA_ERROR_JIT_COMPILER_NOT_FOUND"; return 0;
    case UNSUPPORTED_PTX: *name = "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"; return 0;
    case LOST: *name = "CUDA_ERROR_LAUNCH_FAILED"; return 0;
    default: return 1;
    }
}

unsigned cuDeviceGetCount(int *count) {
    *count = plays("empty") ? 0 : 1;
    return 0;
}

unsigned cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return 0;
}

unsigned cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "Fake");
    return 0;
}

unsigned cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (attribute == 88) {
        *value = plays("reads-host-memory");
        return 0;
    }
    *value = attribute == 75 ? (plays("old-device") ? 6 : 8) : (plays("old-device") ? 1 : 7);
    return 0;
}

unsigned cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = &launches;
    return 0;
}

unsigned cuDevicePrimaryCtxRelease_v2(int device) { return result(); }
unsigned cuCtxSetCurrent(void *context) { return 0; }

unsigned cuStreamCreate(void **stream, unsigned flags) {
    *stream = malloc(1);
    return 0;
}

unsigned cuStreamDestroy_v2(void *stream) {
    free(stream);
    return result();
}

unsigned cuStreamSynchronize(void *stream) {
    copying = 0;
    return result();
}

unsigned cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *free_bytes = 1 << 20;
    *total = 1 << 30;
    return result();
}

unsigned cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    if (lost) return LOST;
    static size_t held;
    if (plays("memory") && (held += bytes) > 1 << 20) return OUT_OF_MEMORY;
    *address = (uint64_t)malloc(bytes);
    return 0;
}

unsigned cuMemFree_v2(uint64_t address) {
    free((void *)address);
    return result();
}

unsigned cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
    memset((void *)to, value, bytes);
    return result();
}

unsigned cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    for (int i = 0; i < pinned_count; i++) {
        if (from != pinned[i].start) continue;
        // Whoever did not wait has changed the bytes of the copy before.
        if (pinned[i].busy) lost = 1;
        pinned[i].busy = 1;
        copied_last = i;
        memcpy((void *)to, from, bytes);
        return result();
    }
    // Whoever does not wait may have changed the bytes of the copy before.
    if (copying) lost = 1;
    copying = plays("reads-host-memory");
    memcpy((void *)to, from, bytes);
    return result();
}

unsigned cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    if (plays("no-pinned-memory") && pinned_count == 1) return OUT_OF_MEMORY;
    *address = pinned[pinned_count++].start = malloc(bytes);
    return result();
}

unsigned cuMemFreeHost(void *address) {
    free(address);
    return result();
}

unsigned cuEventCreate(void **event, unsigned flags) {
    *event = malloc(sizeof(int));
    *(int *)*event = -1;
    return result();
}

unsigned cuEventRecord(void *event, void *stream) {
    *(int *)event = copied_last;
    return result();
}

unsigned cuEventSynchronize(void *event) {
    if (*(int *)event >= 0) pinned[*(int *)event].busy = 0;
    return result();
}

unsigned cuEventDestroy_v2(void *event) {
    free(event);
    return result();
}

unsigned cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    memset(to, 0, bytes);
    return result();
}

unsigned cuModuleLoadDataEx(void **module, const void *text, unsigned count, unsigned *options, void **values) {
    if (plays("no-compiler")) return NO_COMPILER;
    if (plays("unsupported")) {
        snprintf(values[0], (size_t)values[1], "ptxas application ptx input, line 9; fatal   : Unsupported .version 7.4");
        return UNSUPPORTED_PTX;
    }
    if (plays("invalid")) {
        snprintf(values[0], (size_t)values[1], "ptxas application ptx input, line 77; error   : Unknown symbol");
        return INVALID_PTX;
    }
    *module = strdup("module");
    return 0;
}

unsigned cuModuleUnload(void *module) {
    free(module);
    return result();
}

unsigned cuModuleGetFunction(void **function, void *module, const char *name) {
    *function = module;
    return 0;
}

unsigned cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                        unsigned shared, void *stream, void **parameters, void **extra) {
    if (copying || (plays("lost") && ++launches > 6)) lost = 1;
    return result();
}

#ifndef WITHOUT_GRAPHS
unsigned cuStreamBeginCapture_v2(void *stream, unsigned mode) { return result(); }
#endif

unsigned cuStreamEndCapture(void *stream, void **graph) {
    *graph = strdup("graph");
    return result();
}

unsigned cuGraphInstantiateWithFlags(void **ready, void *graph, uint64_t flags) {
    *ready = strdup("ready");
    return result();
}

unsigned cuGraphLaunch(void *ready, void *stream) {
    if (plays("lost-replay")) lost = 1;
    return result();
}

unsigned cuGraphExecDestroy(void *ready) {
    free(ready);
    return result();
}

unsigned cuGraphDestroy(void *graph) {
    free(graph);
    return result();
}
