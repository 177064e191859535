/* A CUDA runtime for machines without a GPU: its device memory is memory of the host, streams are done at once.

   Preloaded before torch, it answers for libcudart and libcuda. It starts no kernel: operators.py computes on the host.
   SIMULATED_GPU_GB is the memory of the device, 80 GB by default; pages that nothing touches take no memory. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { FREE, PINNED, DEVICE, MOST_RANGES = 1 << 16 };
static struct { char *start; size_t size; int kind; } ranges[MOST_RANGES];
static int num_ranges;
static size_t used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static size_t total_memory(void) {
    const char *gigabytes = getenv("SIMULATED_GPU_GB");
    return (size_t)((gigabytes ? atof(gigabytes) : 80.0) * 1e9);
}

static cudaError_t take(void **pointer, size_t size, int kind) {
    cudaError_t code = cudaErrorMemoryAllocation;
    size = (size + 4095) & ~(size_t)4095;
    pthread_mutex_lock(&lock);
    *pointer = NULL;
    if (num_ranges < MOST_RANGES && (kind != DEVICE || used + size <= total_memory())) {
        void *found = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (found != MAP_FAILED) {
            ranges[num_ranges].start = *pointer = found;
            ranges[num_ranges].size = size;
            ranges[num_ranges++].kind = kind;
            used += kind == DEVICE ? size : 0;
            code = cudaSuccess;
        }
    }
    pthread_mutex_unlock(&lock);
    return code;
}

static cudaError_t give_back(void *pointer) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_ranges; i++) {
        if (ranges[i].start != pointer) continue;
        used -= ranges[i].kind == DEVICE ? ranges[i].size : 0;
        munmap(pointer, ranges[i].size);
        ranges[i] = ranges[--num_ranges];
        break;
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **pointer, size_t size) { return take(pointer, size, DEVICE); }
cudaError_t cudaFree(void *pointer) { return give_back(pointer); }
cudaError_t cudaHostAlloc(void **pointer, size_t size, unsigned flags) { return take(pointer, size, PINNED); }
cudaError_t cudaFreeHost(void *pointer) { return give_back(pointer); }

/* What is registered is not told apart from other memory of the host. */
cudaError_t cudaHostRegister(void *pointer, size_t size, unsigned flags) { return cudaSuccess; }
cudaError_t cudaHostUnregister(void *pointer) { return cudaSuccess; }

cudaError_t cudaMemGetInfo(size_t *left, size_t *total) {
    *total = total_memory();
    *left = *total - used;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeUnregistered;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < num_ranges; i++) {
        if ((char *)pointer < ranges[i].start || (char *)pointer >= ranges[i].start + ranges[i].size) continue;
        attributes->type = ranges[i].kind == DEVICE ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
        attributes->devicePointer = attributes->hostPointer = (void *)pointer;
    }
    pthread_mutex_unlock(&lock);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
    memcpy(to, from, size);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return cudaMemcpy(to, from, size, kind);
}
cudaError_t cudaMemset(void *at, int value, size_t size) { memset(at, value, size); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void *at, int value, size_t size, cudaStream_t s) { return cudaMemset(at, value, size); }

cudaError_t cudaGetDeviceCount(int *count) { *count = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { *device = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return device ? cudaErrorInvalidDevice : cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return cudaSuccess; }
cudaError_t cudaDeviceSynchronize(void) { return cudaSuccess; }

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "Simulated GPU");
    properties->totalGlobalMem = total_memory();
    properties->major = 9;
    properties->multiProcessorCount = 132;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->sharedMemPerBlock = 49152;
    properties->sharedMemPerBlockOptin = 232448;
    return cudaSuccess;
}

static size_t last_handle = 0x1000;
cudaError_t cudaStreamCreate(cudaStream_t *stream) {
    *stream = (cudaStream_t)(last_handle += 16);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) { return cudaStreamCreate(s); }
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *most) { *least = *most = 0; return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                     const cudaGraphEdgeData **edges, size_t *count) {
    return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode) { return cudaSuccess; }

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = calloc(1, sizeof(struct timespec));
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) { free(event); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event);
    return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t s, unsigned f) { return cudaEventRecord(event, s); }
cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
    struct timespec *a = (struct timespec *)from, *b = (struct timespec *)to;
    *milliseconds = (b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) * 1e-6;
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **given, size_t shared, cudaStream_t s) {
    fprintf(stderr, "simulated GPU: a kernel was started that operators.py does not know\n");
    abort();
}

static int answer(void) { return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                             unsigned long long flags, enum cudaDriverEntryPointQueryResult *found) {
    *function = strcmp(name, "cuDevicePrimaryCtxGetState") ? (void *)answer : (void *)cuDevicePrimaryCtxGetState;
    if (found) *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}
