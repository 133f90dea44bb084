// RoI max pooling on CUDA. NVRTC compiles this file at first use, one module for each type of features (-DVALUE=...).
// For the tests, a host compiler compiles it through cuda_on_host.h. It includes only our own headers.
//
// Features, results, indices and gradients are channels last: [N][H][W][C] and [K][PH][PW][C]. A thread processes the
// channels of one 16-byte load, so that a warp reads 512 contiguous bytes of a cell.

#ifndef ROI_ON_HOST
#define ROI_FN static __device__ __forceinline__
#endif
#include "roi_bins.h"

// VALUE: 0 float16, 1 bfloat16, 2 float32, 3 float64. Sum is the type in which gradients are summed.
#if VALUE <= 1
typedef unsigned short Value;
typedef float Sum;
#elif VALUE == 2
typedef float Value;
typedef float Sum;
#else
typedef double Value;
typedef double Sum;
#endif

enum {
    LANES = 16 / (int)sizeof(Value),  // channels per thread
    THREADS = 128,                    // maximum per block; exact number in the deterministic backward
    TILE = 32,                        // cells of a row that a block of the deterministic backward sums
};

template <int N>
struct alignas(N * sizeof(Value)) Part {
    Value lane[N];
};

// --- 16-byte loads and stores ---

// Uses inline assembly on the device, because the compiler turned a copy of eight halves into eight loads.
template <int N>
ROI_FN Part<N> load(const Value* from) {
#if defined(__CUDA_ARCH__)
    if constexpr (N == LANES) {
        union {
            unsigned word[4];
            Part<N> part;
        } u;
        asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
            : "=r"(u.word[0]), "=r"(u.word[1]), "=r"(u.word[2]), "=r"(u.word[3])
            : "l"(from));
        return u.part;
    } else
#endif
        return *(const Part<N>*)from;
}

template <class T, int N>
ROI_FN void store(T* to, const T (&lane)[N]) {
#if defined(__CUDA_ARCH__)
    if constexpr (N * sizeof(T) % 16 == 0) {
        union {
            unsigned word[N * sizeof(T) / 4];
            T lane[N];
        } u;
#pragma unroll
        for (int l = 0; l < N; l++) u.lane[l] = lane[l];
#pragma unroll
        for (int w = 0; w < (int)(N * sizeof(T) / 4); w += 4)
            asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"((char*)to + 4 * w), "r"(u.word[w]),
                         "r"(u.word[w + 1]), "r"(u.word[w + 2]), "r"(u.word[w + 3])
                         : "memory");
    } else
#endif
        for (int l = 0; l < N; l++) to[l] = lane[l];
}

// --- comparison ---

// Keys are compared instead of values. Floats are their own keys. Half-precision values become integers with the same
// order, in which NaN is the largest.
#if VALUE <= 1
typedef int Key;
ROI_FN Key to_key(Value bits) {
    const int size = bits & 0x7fff;
    if (size > (VALUE == 0 ? 0x7c00 : 0x7f80)) return 0x7fff;
    return bits & 0x8000 ? -size : size;
}
ROI_FN Value from_key(Key key) { return (Value)(key < 0 ? 0x8000 | -key : key); }
ROI_FN bool beats(Key a, Key b) { return a > b; }
#else
typedef Value Key;
ROI_FN Key to_key(Value v) { return v; }
ROI_FN Value from_key(Key v) { return v; }
ROI_FN bool beats(Key a, Key b) { return a > b || (a != a && b == b); }  // if both are NaN, the first one is kept
#endif

// Computes best = max(best, cell) for each lane if the index is not needed. Uses one instruction for one float or two
// halves if the GPU has it.
template <int N>
ROI_FN void take_larger(Part<N>& best, const Part<N>& cell) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && VALUE == 2
#pragma unroll
    for (int l = 0; l < N; l++) asm("max.NaN.f32 %0, %0, %1;" : "+f"(best.lane[l]) : "f"(cell.lane[l]));
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && VALUE <= 1
#pragma unroll
    for (int l = 0; l < N; l += 2) {
        unsigned a = best.lane[l], b = cell.lane[l];
        if (l + 1 < N) a |= (unsigned)best.lane[l + 1] << 16, b |= (unsigned)cell.lane[l + 1] << 16;
#if VALUE == 0
        asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
#else
        asm("max.NaN.bf16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
#endif
        best.lane[l] = (Value)a;
        if (l + 1 < N) best.lane[l + 1] = (Value)(a >> 16);
    }
#else
#pragma unroll
    for (int l = 0; l < N; l++) {
        const Key a = to_key(cell.lane[l]), b = to_key(best.lane[l]);
        best.lane[l] = from_key(beats(a, b) ? a : b);
    }
#endif
}

// --- forward ---

// Grid: x is the RoI, y the row of its bins, z a range of blockDim.x * N channels. `argmax` can be null.
template <int N>
ROI_FN void pool(const Value* __restrict__ features, const float* __restrict__ rois, int images, int channels,
                 int height, int width, int ph, int pw, float scale, int variant, Value* __restrict__ out,
                 int* __restrict__ argmax) {
    const long long k = blockIdx.x;
    const int i = (int)blockIdx.y, c = (int)(blockIdx.z * blockDim.x + threadIdx.x) * N;
    if (c >= channels) return;
    const float* roi = rois + k * 5;
    const bool known = roi[0] >= 0.0f && roi[0] < (float)images;  // an RoI with an invalid batch index is pooled to 0
    const RoiRange y = roi_bin(roi_extent(roi[2], roi[4], scale, variant), i, ph, height, variant);
    const RoiExtent wide = roi_extent(roi[1], roi[3], scale, variant);
    const Value* map = features + (known ? (long long)roi[0] : 0) * height * width * channels + c;
    for (int j = 0; j < pw; j++) {
        const RoiRange x = roi_bin(wide, j, pw, width, variant);
        const long long at = ((k * ph + i) * pw + j) * channels + c;
        Part<N> best;
        if (!known || y.start >= y.stop || x.start >= x.stop) {
            int nowhere[N];
#pragma unroll
            for (int l = 0; l < N; l++) best.lane[l] = 0, nowhere[l] = -1;
            store(out + at, best.lane);
            if (argmax) store(argmax + at, nowhere);
            continue;
        }
        best = load<N>(map + ((long long)y.start * width + x.start) * channels);
        if (!argmax) {
            for (int r = y.start; r < y.stop; r++) {
                const Value* cell = map + ((long long)r * width + x.start) * channels;
                for (int s = x.start; s < x.stop; s++, cell += channels) take_larger(best, load<N>(cell));
            }
        } else {
            Key key[N];
            int where[N];
#pragma unroll
            for (int l = 0; l < N; l++) key[l] = to_key(best.lane[l]), where[l] = y.start * width + x.start;
            for (int r = y.start; r < y.stop; r++) {
                const Value* cell = map + ((long long)r * width + x.start) * channels;
                for (int s = x.start; s < x.stop; s++, cell += channels) {
                    const Part<N> value = load<N>(cell);
#pragma unroll
                    for (int l = 0; l < N; l++) {
                        const Key here = to_key(value.lane[l]);
                        if (beats(here, key[l])) key[l] = here, where[l] = r * width + s;
                    }
                }
            }
#pragma unroll
            for (int l = 0; l < N; l++) best.lane[l] = from_key(key[l]);
            store(argmax + at, where);
        }
        store(out + at, best.lane);
    }
}

#define FORWARD(name, N)                                                                                            \
    extern "C" __global__ void name(const Value* features, const float* rois, int images, int channels, int height, \
                                    int width, int ph, int pw, float scale, int variant, Value* out, int* argmax) { \
        pool<N>(features, rois, images, channels, height, width, ph, pw, scale, variant, out, argmax);              \
    }

FORWARD(roi_pool_forward, LANES)     // channels are a multiple of LANES, memory is aligned to 16 bytes
FORWARD(roi_pool_forward_odd, 1)     // all other cases

// --- backward ---

// Sums with atomics. The order of the additions, and therefore the last bits of the sums, differ between runs. Each
// thread processes one element at a time.
extern "C" __global__ void roi_pool_backward(const Sum* grad, const float* rois, const int* argmax, long long count,
                                             int per_roi, int channels, long long cells, Sum* total) {
    for (long long e = (long long)blockIdx.x * blockDim.x + threadIdx.x; e < count;
         e += (long long)gridDim.x * blockDim.x) {
        const int cell = argmax[e];
        if (cell < 0) continue;  // an empty bin, or an RoI with an invalid batch index
        const long long image = (long long)rois[e / per_roi * 5];
        atomicAdd(total + (image * cells + cell) * channels + e % channels, grad[e]);
    }
}

// Computes the same sums in the fixed order of the reference: RoI by RoI, then bin by bin. Each block owns up to TILE
// cells of one row of one image, and each thread one channel of these cells. It skips RoIs that do not reach the row.
// Every cell of `total` is written, so it does not need to be zeroed.
// Grid: x is image, row and tile; y is a range of THREADS channels.
extern "C" __global__ void roi_pool_backward_in_order(const Sum* grad, const float* rois, const int* argmax, int count,
                                                      int ph, int pw, int channels, int height, int width, float scale,
                                                      int variant, Sum* total) {
    __shared__ Sum sums[TILE][THREADS];  // a thread uses only its own column, so no synchronisation is needed
    const int t = (int)threadIdx.x, c = (int)blockIdx.y * THREADS + t;
    if (c >= channels) return;
    const int tiles = (width + TILE - 1) / TILE;
    const int left = (int)(blockIdx.x % tiles) * TILE, row = (int)(blockIdx.x / tiles % height);
    const long long image = blockIdx.x / tiles / height;
    const int cells = width - left < TILE ? width - left : TILE, base = row * width + left;
    for (int s = 0; s < cells; s++) sums[s][t] = 0;
    for (int k = 0; k < count; k++) {
        const float* roi = rois + (long long)k * 5;
        if (!(roi[0] >= (float)image && roi[0] < (float)(image + 1))) continue;
        const RoiExtent high = roi_extent(roi[2], roi[4], scale, variant);
        if (row < high.first || row > high.first + high.length) continue;  // rounding can add one cell
        const RoiExtent wide = roi_extent(roi[1], roi[3], scale, variant);
        for (int i = 0; i < ph; i++) {
            const RoiRange y = roi_bin(high, i, ph, height, variant);
            if (row < y.start || row >= y.stop) continue;
            for (int j = 0; j < pw; j++) {
                const RoiRange x = roi_bin(wide, j, pw, width, variant);
                if (x.stop <= left || x.start >= left + cells) continue;
                const long long at = (((long long)k * ph + i) * pw + j) * channels + c;
                const int s = argmax[at] - base;
                if (s >= 0 && s < cells) sums[s][t] += grad[at];
            }
        }
    }
    for (int s = 0; s < cells; s++) total[((image * height + row) * width + left + s) * channels + c] = sums[s][t];
}
