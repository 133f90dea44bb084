// Selective search on the CPU (Uijlings et al., IJCV 2013), based on the graph segmentation of Felzenszwalb and
// Huttenlocher (IJCV 2004). fastrcnn/proposals/kernel.py calls the plain C interface at the end of this file through
// ctypes. This file does not depend on torch or Python.
//
// The results are the same as OpenCV's unless several edges or similarities are equal. Work that OpenCV repeats is done
// only once:
//  - Edges are sorted once per colour image instead of once per k (the scale parameter of the segmentation).
//  - The segmentation that all k have in common is computed once.
//  - Gradients are computed once per plane, and histograms once per part, which is a set of pixels that no k divides.
//  - All similarity measures start from the same histograms.
// A heap selects the most similar pair of neighbours, which is merged next.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <new>
#include <vector>

namespace {

enum { COLOUR = 1, TEXTURE = 2, SIZE = 4, FILL = 8 };  // the terms of a similarity measure

struct Search {
    int height, width;
    int planes;
    const uint8_t* const* plane;  // [planes][height][width]
    int images;
    const int32_t* channels;  // number of channels of each colour image
    const int32_t* channel;   // the plane of each channel of all colour images, in order
    int ks;
    const float* k;
    int taps;
    const float* kernel;  // blur kernel; symmetric
    const int32_t* min_size;  // for each k
    int groupings;
    const int32_t* measures;  // [groupings], the similarity measures, as sums of terms
    int32_t* labels;  // [images][ks][height][width], or null
    // [planes][4][height][width], or null: the bins of four derivatives. 0 to 9 are bins of negative values, 10 to 19
    // are bins of positive values, and 20 means zero. If it is given, the search follows the code of the ICCV 2011
    // paper: edges connect a pixel to all eight neighbours, the blur repeats border pixels, and segments that touch
    // only at a corner are not neighbours.
    const uint8_t* texture;
};

// An arena allocator. The destructor of a Mark frees everything allocated after the Mark was created. The memory is
// reused for the thread's next image.
class Arena {
public:
    ~Arena() { release(); }

    template <class T>
    T* take(size_t count) {
        return (T*)bytes(count * sizeof(T));
    }

    struct Mark {
        explicit Mark(Arena& arena) : arena(arena), block(arena.block), used(arena.used) {}
        ~Mark() {
            arena.block = block;
            arena.used = used;
        }
        Arena& arena;
        const size_t block, used;
    };

    // Call this after each image. Replaces several blocks with one block of the same total size, or frees all blocks if
    // their total size exceeds KEPT.
    void settle() {
        size_t sum = 0;
        for (const Block& b : blocks) sum += b.size;
        if (blocks.size() > 1 || sum > KEPT) {
            release();
            if (sum <= KEPT) add(sum);
        }
        block = used = 0;
    }

    void release() {
        for (Block& b : blocks) free(b.data);
        blocks.clear();
        block = used = 0;
    }

    static constexpr size_t KEPT = (size_t)128 << 20;  // maximum bytes kept between two images

private:
    static constexpr size_t LEAST = (size_t)8 << 20, PAGE = (size_t)2 << 20;
    struct Block {
        char* data;
        size_t size;
    };

    void add(size_t size) {
        size = (size + PAGE - 1) / PAGE * PAGE;
        char* data = (char*)aligned_alloc(PAGE, size);
        if (!data) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
        madvise(data, size, MADV_HUGEPAGE);  // access is scattered, and small pages would cause TLB misses
#endif
        blocks.push_back({data, size});
    }

    __attribute__((noinline)) void* bytes(size_t size) {
        size = (size + 63) / 64 * 64;
        while (block < blocks.size() && used + size > blocks[block].size) {
            block++;
            used = 0;
        }
        if (block == blocks.size()) add(std::max(size, LEAST));
        used += size;
        return blocks[block].data + used - size;
    }

    std::vector<Block> blocks;
    size_t block = 0, used = 0;
};

// Returns log2 in units of 1 / 65536, interpolated linearly between powers of two. The result is an integer, because
// sums of integers do not depend on the order.
inline int64_t log2_of(uint32_t v) {
    const int exponent = 31 - __builtin_clz(v);
    return ((int64_t)exponent << 16) + (int64_t)(((uint64_t)v << 16 >> exponent) - 65536);
}

// The segments that were found. A rectangle contains x, y, width and height, with 16 bits each.
struct Found {
    struct Entry {
        uint64_t rectangle;
        int64_t ranks;  // sum of log2_of(position)
        int64_t sizes;  // sum, in pixels
        int64_t count;
    };
    std::vector<Entry> entries;

    // position: 1 for the last segment of its hierarchy (the entire image), 2 for the one before it, and so on
    __attribute__((noinline)) void add(int x, int y, int width, int height, int32_t position, int32_t size) {
        const uint64_t rectangle = (uint64_t)x << 48 | (uint64_t)y << 32 | (uint64_t)width << 16 | (uint64_t)height;
        entries.push_back({rectangle, log2_of((uint32_t)position), size, 1});
    }

    // Sorts the rectangles and combines equal ones.
    void settle() {
        std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.rectangle < b.rectangle; });
        size_t count = 0;
        for (const Entry& e : entries) {
            if (count && entries[count - 1].rectangle == e.rectangle) {
                Entry& same = entries[count - 1];
                same.ranks += e.ranks;
                same.sizes += e.sizes;
                same.count += e.count;
            } else
                entries[count++] = e;
        }
        entries.resize(count);
    }
};

}  // namespace

#define LEVEL_FILE "selective_search_level.h"
#include "instruction_sets.h"

namespace {

thread_local Arena arena;
thread_local Found found;

struct Level {
    void (*search)(const Search&, Arena&, Found&);
    int64_t (*thin)(const float*, int64_t, float, int64_t, Arena&, int32_t*);
};

const Level LEVELS[] = {  // in the order of roi_pool_best_level
    {plain::search, plain::thin},
#if defined(__x86_64__)
    {avx2::search, avx2::thin},
    {avx512::search, avx512::thin},
#endif
};

}  // namespace

extern "C" {

// Returns the version of the functions below, which increases with every change of their arguments. It prevents calls
// into a library that was built from other sources.
int selective_search_interface(void) { return 1; }

// Searches an image and returns the number of distinct rectangles, or -1 if memory runs out. To get the rectangles,
// call selective_search_take on the same thread.
int64_t selective_search(int height, int width, int planes, const uint8_t* pixels, int images, const int32_t* channels,
                         const int32_t* channel, int ks, const float* k, int taps, const float* kernel,
                         const int32_t* min_size, int groupings, const int32_t* measures, int32_t* labels,
                         const uint8_t* texture, int level) {
    found.entries.clear();
    try {
        std::vector<const uint8_t*> plane;
        for (int p = 0; p < planes; p++) plane.push_back(pixels + (size_t)p * height * width);
        const Search s = {height, width, planes, plane.data(), images,    channels, channel, ks,
                          k,      taps,  kernel, min_size,     groupings, measures, labels,   texture};
        LEVELS[level].search(s, arena, found);
        arena.settle();
        found.settle();
    } catch (const std::bad_alloc&) {
        arena.release();
        found = Found();
        return -1;
    }
    return (int64_t)found.entries.size();
}

// Writes the rectangles of this thread's last search, sorted, as x y width height. `ranks` receives the mean of
// log2(position) over the segments with the same rectangle, and `fills` the mean fraction of the rectangle that these
// segments cover. Call this function only once per search.
void selective_search_take(int32_t* rectangles, double* ranks, double* fills) {
    for (const Found::Entry& e : found.entries) {
        const double area = (double)(e.rectangle >> 16 & 0xffff) * (double)(e.rectangle & 0xffff);
        for (int shift = 48; shift >= 0; shift -= 16) *rectangles++ = (int32_t)(e.rectangle >> shift & 0xffff);
        *ranks++ = (double)e.ranks / ((double)e.count * 65536);
        *fills++ = (double)e.sizes / ((double)e.count * area);
    }
    if (found.entries.capacity() > Arena::KEPT / sizeof(Found::Entry)) found = Found();
}

// Selects boxes (x1 y1 x2 y2) in order, skipping each one whose IoU with a selected box is `near` or more. Writes the
// indices of the first `limit` selected boxes. Returns their number, or -1 if memory runs out.
int64_t selective_search_thin(const float* boxes, int64_t count, float near, int64_t limit, int32_t* kept, int level) {
    try {
        return LEVELS[level].thin(boxes, count, near, limit, arena, kept);
    } catch (const std::bad_alloc&) {
        return -1;
    }
}
}
