// The subset of CUDA that a host compiler needs to build roi_pool.cu, so that it can be tested without a GPU. Blocks
// and threads run one after another, which is correct for kernels that do not synchronise.
#include <math.h>
#include <string.h>

#define ROI_ON_HOST
#define ROI_FN static inline
#define __global__
#define __shared__ static

struct Dim3 {
    unsigned x, y, z;
};
static Dim3 gridDim, blockDim, blockIdx, threadIdx;

template <class T>
static void atomicAdd(T* at, T value) {
    *at += value;
}

#include "roi_pool.cu"

// Launches a kernel with the arguments of the CUDA driver: a grid, a block, and an array of pointers to the kernel's
// arguments. Returns 1 if the kernel does not exist.
extern "C" int roi_launch(const char* name, const unsigned* grid, const unsigned* block, void** a) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++)
                for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++) {
#define P(i) (*(void**)a[i])
#define I(i) (*(int*)a[i])
#define L(i) (*(long long*)a[i])
#define F(i) (*(float*)a[i])
                    if (!strcmp(name, "roi_pool_forward") || !strcmp(name, "roi_pool_forward_odd"))
                        (strcmp(name, "roi_pool_forward") ? roi_pool_forward_odd : roi_pool_forward)(
                            (const Value*)P(0), (const float*)P(1), I(2), I(3), I(4), I(5), I(6), I(7), F(8), I(9),
                            (Value*)P(10), (int*)P(11));
                    else if (!strcmp(name, "roi_pool_backward"))
                        roi_pool_backward((const Sum*)P(0), (const float*)P(1), (const int*)P(2), L(3), I(4), I(5), L(6),
                                          (Sum*)P(7));
                    else if (!strcmp(name, "roi_pool_backward_in_order"))
                        roi_pool_backward_in_order((const Sum*)P(0), (const float*)P(1), (const int*)P(2), I(3), I(4),
                                                   I(5), I(6), I(7), I(8), F(9), I(10), (Sum*)P(11));
                    else
                        return 1;
                }
    return 0;
}
