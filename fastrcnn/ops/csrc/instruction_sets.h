// Includes LEVEL_FILE once for each instruction set, in the order of roi_pool_best_level. LEVEL is the name of the
// instruction set, for use as a namespace, and LANE_BYTES is the size of its registers. Undefines LEVEL_FILE, so that
// this file can be included again.

#define LEVEL plain
#define LANE_BYTES 16
#include LEVEL_FILE
#undef LEVEL
#undef LANE_BYTES

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#define LEVEL avx2
#define LANE_BYTES 32
#include LEVEL_FILE
#undef LEVEL
#undef LANE_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define LEVEL avx512
#define LANE_BYTES 64
#include LEVEL_FILE
#undef LEVEL
#undef LANE_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

#undef LEVEL_FILE
