// The inner loops of RoI pooling for one instruction set and for keys of each width. See instruction_sets.h.

#if !defined(__x86_64__)
#define STREAM(p, v) *(p) = (v)
#elif LANE_BYTES == 16
#define STREAM(p, v) _mm_stream_si128((__m128i*)(p), (__m128i)(v))
#elif LANE_BYTES == 32
#define STREAM(p, v) _mm256_stream_si256((__m256i*)(p), (__m256i)(v))
#else
#define STREAM(p, v) _mm512_stream_si512((__m512i*)(p), (__m512i)(v))
#endif

namespace LEVEL {
#define NAME keys16
#define KEY int16_t
#include "roi_pool_lanes.h"
#define NAME keys32
#define KEY int32_t
#include "roi_pool_lanes.h"
#define NAME keys64
#define KEY int64_t
#include "roi_pool_lanes.h"
}  // namespace LEVEL

#undef STREAM
