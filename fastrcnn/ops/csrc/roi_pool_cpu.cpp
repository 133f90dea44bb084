// RoI max pooling on the CPU. cpu.py calls the plain C interface at the end of this file through ctypes. This file does
// not depend on torch or Python.
//
// The forward pass has two phases. First, the features are repacked into blocks of channels,
// [image][block][cell][channel], as integer keys with the same order as the floats. A block of a VGG16 map fits into
// the L2 cache. Integers are compared as fast as floats, NaN is simply the largest key, and float16 and bfloat16 do not
// need a conversion. Then the threads pool the RoIs, block by block.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "roi_bins.h"

// --- the inner loops, for each instruction set and key width ---

#define LEVEL_FILE "roi_pool_level.h"
#include "instruction_sets.h"

struct Lanes {
    int bytes;
    void (*pool)(const void*, int, const RoiRange*, int, const RoiRange*, int, void*, int32_t*);
    void (*rows)(const void*, int64_t, int64_t, void*, bool);
    void (*planes)(const void*, int64_t, void*);
    void (*pack)(const void*, int64_t, int64_t, int64_t, void*);
};

#define LANES_OF(bytes, name) {bytes, name##_pool, name##_rows, name##_planes, name##_pack}
#define LEVEL_OF(bytes, level) \
    {LANES_OF(bytes, level::keys16), LANES_OF(bytes, level::keys32), LANES_OF(bytes, level::keys64)}

static const Lanes LEVELS[][3] = {  // keys of 16, 32 and 64 bits
    LEVEL_OF(16, plain),
#if defined(__x86_64__)
    LEVEL_OF(32, avx2),
    LEVEL_OF(64, avx512),
#endif
};

// --- memory ---

// Requests huge pages for memory that is about to be written for the first time. Without them, the page faults of a
// new buffer of 200 MB take several times as long as writing it.
static void expect_writes(void* data, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = (uintptr_t)2 << 20, begin = ((uintptr_t)data + 4095) / 4096 * 4096;
    const uintptr_t end = ((uintptr_t)data + bytes) / 4096 * 4096;
    if (data && bytes >= 2 * page) madvise((void*)begin, end - begin, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

// --- threads ---

// Runs work(task) for every task below `tasks` on `threads` threads, including the calling thread. New threads are
// created for each call, because a second OpenMP runtime next to torch's would compete with it for the cores. Creating
// a thread takes about 30 microseconds, which is little compared with milliseconds of work.
template <class Work>
static void share_out(int64_t tasks, int threads, const Work& work) {
    std::atomic<int64_t> next(0);
    auto run = [&] {
        for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(t);
#if defined(__x86_64__)
        _mm_sfence();  // makes streaming stores visible to other threads
#endif
    };
    std::vector<std::thread> helpers;
    try {
        for (int i = 1; i < threads && i < tasks; i++) helpers.emplace_back(run);
    } catch (const std::system_error&) {  // no more threads available: the existing ones do all of the work
    }
    run();
    for (auto& helper : helpers) helper.join();
}

// --- keys ---

// Converts float bits to an integer. The integers have the same order as the floats. Both zeros become 0, because they
// are equal. NaN becomes the largest integer.
template <class Key>
static inline Key to_key(Key bits, Key infinity) {
    const Key magnitude = (Key)(((Key)1 << (8 * sizeof(Key) - 2)) - 1 + ((Key)1 << (8 * sizeof(Key) - 2)));
    const Key size = (Key)(bits & magnitude);
    const Key key = bits < 0 ? (Key)-size : size;
    return size > infinity ? magnitude : key;
}

template <class Key>
static inline Key from_key(Key key) {
    const Key sign = (Key)((Key)1 << (8 * sizeof(Key) - 1));
    return key < 0 ? (Key)(sign | (Key)-key) : key;
}

struct Map {
    const void* data;
    int64_t images, channels, height, width;
    int64_t stride[4];  // of N, C, H, W, in elements
};

// Packs one block of channels of one image into keys [H * W][block]. `Bits` is the integer type of the floats' bits.
template <class Bits, class Key>
static void pack(const Map& map, const Lanes& lanes, int64_t image, int64_t block, int64_t channel, Bits infinity,
                 Key* keys) {
    const int64_t count = map.channels - channel < block ? map.channels - channel : block;
    const Bits* source = (const Bits*)map.data + image * map.stride[0] + channel * map.stride[1];
    const int64_t cells = map.height * map.width, in_lanes = lanes.bytes / (int64_t)sizeof(Key);
    if (sizeof(Bits) == sizeof(Key) && count == block && cells >= in_lanes && map.stride[3] == 1 &&
        map.stride[2] == map.width) {  // complete, contiguous planes
        lanes.pack(source, cells, map.stride[1], infinity, keys);
        return;
    }
    for (int64_t y = 0; y < map.height; y++) {
        const Bits* row = source + y * map.stride[2];
        Key* line = keys + y * map.width * block;
        if (map.stride[1] == 1) {
            for (int64_t x = 0; x < map.width; x++)
                for (int64_t c = 0; c < count; c++)
                    line[x * block + c] = to_key<Bits>(row[x * map.stride[3] + c], infinity);
            continue;
        }
        for (int64_t c = 0; c < count; c++)
            for (int64_t x = 0; x < map.width; x++)
                line[x * block + c] = to_key<Bits>(row[c * map.stride[1] + x * map.stride[3]], infinity);
    }
}

// Writes the keys [bins][block] of `count` channels to the output of one RoI.
template <class Bits, class Key>
static void unpack(const Key* keys, int64_t bins, int64_t block, int64_t count, bool channels_last, int64_t channels,
                   Bits* out) {
    if (channels_last) {
        for (int64_t b = 0; b < bins; b++)
            for (int64_t c = 0; c < count; c++) out[b * channels + c] = from_key<Bits>((Bits)keys[b * block + c]);
    } else {
        for (int64_t c = 0; c < count; c++)
            for (int64_t b = 0; b < bins; b++) out[c * bins + b] = from_key<Bits>((Bits)keys[b * block + c]);
    }
}

// --- forward ---

struct Pooling {
    Map map;
    const float* rois;  // [K][5]
    int64_t count;      // K
    int ph, pw, variant;
    float scale;
    void* out;  // [K][C][PH][PW], or [K][PH][PW][C] if channels_last
    bool channels_last;
    int32_t* argmax;  // [K][PH][PW][C] or null
};

template <class Bits, class Key>
static void forward(const Pooling& p, const Lanes& lanes, Bits infinity, int threads) {
    const int64_t bins = (int64_t)p.ph * p.pw, cells = p.map.height * p.map.width;
    const int64_t block = 4 * lanes.bytes / (int64_t)sizeof(Key);
    const int64_t blocks = (p.map.channels + block - 1) / block;
    struct Buffer {
        void* data;
        explicit Buffer(size_t bytes) : data(aligned_alloc(64, (bytes + 127) / 64 * 64)) {
            if (!data) throw std::bad_alloc();
            expect_writes(data, bytes);
        }
        ~Buffer() { free(data); }
    };
    Buffer packed((size_t)(p.map.images * blocks * cells * block) * sizeof(Key));
    Key* keys = (Key*)packed.data;
    std::vector<RoiRange> ranges((size_t)(p.count * (p.ph + p.pw)));  // of each RoI: rows, then columns

    share_out(p.map.images * blocks, threads, [&](int64_t t) {
        pack<Bits, Key>(p.map, lanes, t / blocks, block, t % blocks * block, infinity, keys + t * cells * block);
    });
    for (int64_t k = 0; k < p.count; k++) {
        const float* roi = p.rois + k * 5;
        RoiRange* range = ranges.data() + k * (p.ph + p.pw);
        const RoiExtent high = roi_extent(roi[2], roi[4], p.scale, p.variant);
        const RoiExtent wide = roi_extent(roi[1], roi[3], p.scale, p.variant);
        for (int i = 0; i < p.ph; i++) *range++ = roi_bin(high, i, p.ph, (int)p.map.height, p.variant);
        for (int j = 0; j < p.pw; j++) *range++ = roi_bin(wide, j, p.pw, (int)p.map.width, p.variant);
    }

    const size_t bytes = (size_t)(p.count * bins * p.map.channels) * sizeof(Bits);
    const bool rows = sizeof(Bits) == sizeof(Key) && p.channels_last && (uintptr_t)p.out % 64 == 0 &&
                      p.map.channels * sizeof(Bits) % (size_t)lanes.bytes == 0;
    const bool planes = sizeof(Bits) == sizeof(Key) && !p.channels_last && bins * (int64_t)sizeof(Key) >= lanes.bytes;
    const bool stream = bytes > ((size_t)8 << 20);
    expect_writes(p.out, bytes);
    if (p.argmax) expect_writes(p.argmax, bytes / sizeof(Bits) * sizeof(int32_t));

    const int64_t chunk = 32, chunks = (p.count + chunk - 1) / chunk;
    share_out(blocks * chunks, threads, [&](int64_t t) {
        const int64_t b = t / chunks, channel = b * block, last = (t % chunks + 1) * chunk;
        const int64_t count = p.map.channels - channel < block ? p.map.channels - channel : block;
        static thread_local std::vector<char> space;
        space.resize((size_t)(bins * block) * (sizeof(Key) + sizeof(int32_t)) + 64);
        Key* best = (Key*)(((uintptr_t)space.data() + 63) / 64 * 64);
        int32_t* where = p.argmax ? (int32_t*)(best + bins * block) : nullptr;
        for (int64_t k = t % chunks * chunk; k < p.count && k < last; k++) {
            const RoiRange* range = ranges.data() + k * (p.ph + p.pw);
            const float image = p.rois[k * 5];
            if (image >= 0 && image < (float)p.map.images) {
                const Key* base = keys + ((int64_t)image * blocks + b) * cells * block;
                lanes.pool(base, (int)p.map.width, range, p.ph, range + p.ph, p.pw, best, where);
            } else {  // invalid batch index; the caller disabled the check
                memset(best, 0, (size_t)(bins * block) * sizeof(Key));
                if (where) memset(where, 0xff, (size_t)(bins * block) * sizeof(int32_t));
            }
            Bits* out = (Bits*)p.out + k * bins * p.map.channels + (p.channels_last ? channel : channel * bins);
            if (planes && count == block)
                lanes.planes(best, bins, out);
            else if (rows && count == block)
                lanes.rows(best, bins, p.map.channels, out, stream);
            else
                unpack<Bits, Key>(best, bins, block, count, p.channels_last, p.map.channels, out);
            if (where)
                for (int64_t i = 0; i < bins; i++)
                    memcpy(p.argmax + (k * bins + i) * p.map.channels + channel, where + i * block,
                           (size_t)count * sizeof(int32_t));
        }
    });
}

// --- backward ---

struct Gradient {
    const void* grad;
    const int64_t* stride;  // of grad: K, C, PH, PW, in elements
    const float* rois;
    int64_t count;
    int ph, pw;
    const int32_t* argmax;
    int64_t images, channels, cells;
    void* total;
    const int64_t* map_stride;  // of total: N, C, H, W, in elements
};

// Each task owns 32 channels of one image and processes RoIs and bins in order. This needs no atomics, and the sums do
// not depend on the number of threads. A task sums into its own small block, because the cells of a channels_last
// gradient are a multiple of 2 KB apart and would compete for a few cache lines.
template <class Real>
static void backward(const Gradient& g, int threads) {
    const int64_t block = 32, blocks = (g.channels + block - 1) / block;
    expect_writes(g.total, (size_t)(g.images * g.channels * g.cells) * sizeof(Real));
    share_out(g.images * blocks, threads, [&](int64_t t) {
        const int64_t image = t / blocks, begin = t % blocks * block;
        const int64_t count = g.channels - begin < block ? g.channels - begin : block;
        static thread_local std::vector<Real> sums;
        sums.assign((size_t)(g.cells * block), 0);
        Real* sum = sums.data();
        for (int64_t k = 0; k < g.count; k++) {
            if (!(g.rois[k * 5] >= (float)image && g.rois[k * 5] < (float)(image + 1))) continue;
            for (int i = 0; i < g.ph; i++) {
                for (int j = 0; j < g.pw; j++) {
                    const int32_t* where = g.argmax + ((k * g.ph + i) * g.pw + j) * g.channels + begin;
                    const Real* flow = (const Real*)g.grad + k * g.stride[0] + begin * g.stride[1] + i * g.stride[2] +
                                       j * g.stride[3];
                    for (int64_t c = 0; c < count; c += 16) {  // bins are a page apart, so prefetch
                        __builtin_prefetch(where + 4 * g.channels + c);
                        if (g.stride[1] == 1) __builtin_prefetch(flow + 4 * g.channels + c);
                    }
                    if (g.stride[1] == 1) {
                        for (int64_t c = 0; c < count; c++)
                            if (where[c] >= 0) sum[where[c] * block + c] += flow[c];
                    } else {
                        for (int64_t c = 0; c < count; c++)
                            if (where[c] >= 0) sum[where[c] * block + c] += flow[c * g.stride[1]];
                    }
                }
            }
        }
        Real* total = (Real*)g.total + image * g.map_stride[0] + begin * g.map_stride[1];
        if (g.map_stride[1] == 1) {
            for (int64_t x = 0; x < g.cells; x++)
                memcpy(total + x * g.map_stride[3], sum + x * block, (size_t)count * sizeof(Real));
        } else {
            for (int64_t first = 0; first < g.cells; first += 16)  // blocks of 16 cells stay in the L1 cache
                for (int64_t c = 0; c < count; c++)
                    for (int64_t x = first; x < g.cells && x < first + 16; x++)
                        total[c * g.map_stride[1] + x] = sum[x * block + c];
        }
    });
}

// --- the interface ---

// `type` is 0 for float16, 1 for bfloat16, 2 for float32, 3 for float64. Functions return 0, or 1 if memory runs out.
extern "C" {

// Returns the highest level that this processor supports: 0 plain, 1 AVX2, 2 AVX-512.
int roi_pool_best_level(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

int roi_pool_forward(const void* features, const int64_t* shape, const int64_t* stride, int type, const float* rois,
                     int64_t count, int ph, int pw, float scale, int variant, void* out, int channels_last,
                     int32_t* argmax, int level, int threads) {
    const Map map = {features, shape[0], shape[1], shape[2], shape[3], {stride[0], stride[1], stride[2], stride[3]}};
    const Pooling p = {map, rois, count, ph, pw, variant, scale, out, channels_last != 0, argmax};
    const Lanes* lanes = LEVELS[level];
    try {
        if (type == 3)
            forward<int64_t, int64_t>(p, lanes[2], 0x7ff0000000000000, threads);
        else if (type == 2)
            forward<int32_t, int32_t>(p, lanes[1], 0x7f800000, threads);
        else if (argmax)  // indices need 32 bits, so the keys have 32 bits too
            forward<int16_t, int32_t>(p, lanes[1], type == 1 ? 0x7f80 : 0x7c00, threads);
        else
            forward<int16_t, int16_t>(p, lanes[0], type == 1 ? 0x7f80 : 0x7c00, threads);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// Fills `total`, which is float64 if `type` is 3, otherwise float32. `grad` has the same type.
int roi_pool_backward(const void* grad, const int64_t* stride, int type, const float* rois, int64_t count, int ph,
                      int pw, const int32_t* argmax, const int64_t* map_shape, void* total, const int64_t* map_stride,
                      int threads) {
    const Gradient g = {grad,         stride,       rois,  count,     ph, pw, argmax, map_shape[0],
                        map_shape[1], map_shape[2] * map_shape[3], total, map_stride};
    try {
        if (type == 3)
            backward<double>(g, threads);
        else
            backward<float>(g, threads);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
}
