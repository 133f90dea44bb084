// The inner loops, compiled for each instruction set and key type. Included by roi_pool_level.h with KEY (a signed
// integer type), LANE_BYTES (bytes of one vector), STREAM and NAME defined. Undefines KEY and NAME.
//
// A block is four vectors wide. The four accumulators of a bin stay in registers while its cells are read.

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define VEC JOIN(NAME, _vec)
#define LANES (LANE_BYTES / (int)sizeof(KEY))
#define WIDTH (4 * LANES)
#define VMAX(a, b) ((a) > (b) ? (a) : (b))
#if defined(__clang__)  // clang's builtin needs constant lanes, so the optimiser must find the shuffle
#define SHUFFLE(a, b, mask) JOIN(NAME, _shuffle)(a, b, mask)
#else
#define SHUFFLE(a, b, mask) __builtin_shuffle(a, b, mask)
#endif

typedef KEY VEC __attribute__((vector_size(LANE_BYTES)));

// Computes the largest keys of one RoI in one block of channels. `cells` is [H * W][WIDTH], `rows` and `columns` are
// the RoI's bins, and `best` is [PH * PW][WIDTH]. If `where` is not null, it receives the row-major index of the first
// largest cell, or -1 for an empty bin.
static void JOIN(NAME, _pool)(const void* cells, int width, const RoiRange* rows, int ph, const RoiRange* columns,
                              int pw, void* best, int32_t* where) {
    VEC* out = (VEC*)best;
    for (int i = 0; i < ph; i++) {
        for (int j = 0; j < pw; j++, out += 4) {
            const RoiRange r = rows[i], c = columns[j];
            if (r.start >= r.stop || c.start >= c.stop) {  // key 0 is the value 0
                out[0] = out[1] = out[2] = out[3] = VEC{};
                if (where) {
                    for (int l = 0; l < WIDTH; l++) *where++ = -1;
                }
                continue;
            }
            const VEC* first = (const VEC*)cells + ((int64_t)r.start * width + c.start) * 4;
            VEC a = first[0], b = first[1], d = first[2], e = first[3];
            if (!where) {
                for (int y = r.start; y < r.stop; y++) {
                    const VEC* p = (const VEC*)cells + ((int64_t)y * width + c.start) * 4;
                    for (int x = c.start; x < c.stop; x++, p += 4) {
                        a = VMAX(p[0], a);
                        b = VMAX(p[1], b);
                        d = VMAX(p[2], d);
                        e = VMAX(p[3], e);
                    }
                }
            } else {
                VEC ia = VEC{} + (KEY)((int64_t)r.start * width + c.start), ib = ia, id = ia, ie = ia;
                for (int y = r.start; y < r.stop; y++) {
                    const VEC* p = (const VEC*)cells + ((int64_t)y * width + c.start) * 4;
                    for (int x = c.start; x < c.stop; x++, p += 4) {
                        const VEC here = VEC{} + (KEY)((int64_t)y * width + x);
                        ia = p[0] > a ? here : ia;
                        ib = p[1] > b ? here : ib;
                        id = p[2] > d ? here : id;
                        ie = p[3] > e ? here : ie;
                        a = VMAX(p[0], a);
                        b = VMAX(p[1], b);
                        d = VMAX(p[2], d);
                        e = VMAX(p[3], e);
                    }
                }
                const VEC index[4] = {ia, ib, id, ie};
                for (int v = 0; v < 4; v++)
                    for (int l = 0; l < LANES; l++) *where++ = (int32_t)index[v][l];
            }
            out[0] = a, out[1] = b, out[2] = d, out[3] = e;
        }
    }
}

// Converts float bits to integers. The integers have the same order as the floats. Both zeros become 0, because they
// are equal. NaN becomes the largest integer.
static inline __attribute__((always_inline)) VEC JOIN(NAME, _keys)(VEC bits, KEY infinity) {
    const VEC largest = VEC{} + (KEY) ~((KEY)1 << (8 * sizeof(KEY) - 1));
    const VEC size = bits & largest, negative = bits >> (8 * (int)sizeof(KEY) - 1);
    return size > infinity ? largest : (size ^ negative) - negative;
}

static inline __attribute__((always_inline)) VEC JOIN(NAME, _floats)(VEC key) {
    const VEC negative = key >> (8 * (int)sizeof(KEY) - 1);
    return ((key ^ negative) - negative) | (key & (KEY)((KEY)1 << (8 * sizeof(KEY) - 1)));
}

#if defined(__clang__)
static inline __attribute__((always_inline)) VEC JOIN(NAME, _shuffle)(VEC a, VEC b, VEC mask) {
    VEC mixed;
    for (int l = 0; l < LANES; l++) mixed[l] = mask[l] < LANES ? a[mask[l]] : b[mask[l] - LANES];
    return mixed;
}
#endif

// Transposes a square of LANES vectors with log2(LANES) perfect shuffles of its rows.
static inline __attribute__((always_inline)) void JOIN(NAME, _transpose)(VEC* rows) {
    VEC low, high;  // shuffle masks that interleave two vectors, whose lanes are numbered consecutively
    for (int l = 0; l < LANES; l++) {
        low[l] = (KEY)(l / 2 + l % 2 * LANES);
        high[l] = (KEY)(low[l] + LANES / 2);
    }
    for (int step = 1; step < LANES; step *= 2) {
        VEC next[LANES];
        for (int r = 0; r < LANES / 2; r++) {
            next[2 * r] = SHUFFLE(rows[r], rows[r + LANES / 2], low);
            next[2 * r + 1] = SHUFFLE(rows[r], rows[r + LANES / 2], high);
        }
        for (int r = 0; r < LANES; r++) rows[r] = next[r];
    }
}

// Converts a square of floats to keys [LANES][WIDTH], transposed, or back. The rows of floats are `stride` apart and
// need not be aligned.
static void JOIN(NAME, _square_in)(const KEY* floats, int64_t stride, KEY infinity, KEY* keys) {
    VEC t[LANES];
    for (int r = 0; r < LANES; r++) {
        memcpy(&t[r], floats + r * stride, LANE_BYTES);
        t[r] = JOIN(NAME, _keys)(t[r], infinity);
    }
    JOIN(NAME, _transpose)(t);
    for (int r = 0; r < LANES; r++) *(VEC*)(keys + r * WIDTH) = t[r];
}

static void JOIN(NAME, _square_out)(const KEY* keys, int64_t stride, KEY* floats) {
    VEC t[LANES];
    for (int r = 0; r < LANES; r++) t[r] = JOIN(NAME, _floats)(*(const VEC*)(keys + r * WIDTH));
    JOIN(NAME, _transpose)(t);
    for (int r = 0; r < LANES; r++) memcpy(floats + r * stride, &t[r], LANE_BYTES);
}

// Converts WIDTH planes of `cells` >= LANES floats, `stride` apart, to keys [cells][WIDTH]. The last square overlaps
// the previous one, so that every square is complete.
static void JOIN(NAME, _pack)(const void* planes, int64_t cells, int64_t stride, int64_t infinity, void* keys) {
    for (int64_t begin = 0; begin < cells; begin += LANES) {
        const int64_t x = begin + LANES > cells ? cells - LANES : begin;
        for (int c = 0; c < WIDTH; c += LANES)
            JOIN(NAME, _square_in)((const KEY*)planes + c * stride + x, stride, (KEY)infinity,
                                   (KEY*)keys + x * WIDTH + c);
    }
}

// Converts keys [bins][WIDTH], with bins >= LANES, to planes [WIDTH][bins] of floats.
static void JOIN(NAME, _planes)(const void* best, int64_t bins, void* out) {
    for (int c = 0; c < WIDTH; c += LANES)
        for (int64_t begin = 0; begin < bins; begin += LANES) {
            const int64_t b = begin + LANES > bins ? bins - LANES : begin;
            JOIN(NAME, _square_out)((const KEY*)best + b * WIDTH + c, bins, (KEY*)out + c * bins + b);
        }
}

// Converts keys [bins][WIDTH] to rows of floats at `out`, `stride` floats apart and aligned to a vector. With `stream`,
// the stores bypass the caches. This is faster for outputs that are much larger than the caches, because a normal store
// reads each cache line before it overwrites it.
static void JOIN(NAME, _rows)(const void* best, int64_t bins, int64_t stride, void* out, bool stream) {
    const VEC* keys = (const VEC*)best;
    for (int64_t b = 0; b < bins; b++) {
        VEC* row = (VEC*)((KEY*)out + b * stride);
        for (int v = 0; v < 4; v++, keys++) {
            const VEC bits = JOIN(NAME, _floats)(*keys);
            if (stream)
                STREAM(row + v, bits);
            else
                row[v] = bits;
        }
    }
}

#undef JOIN2
#undef JOIN
#undef VEC
#undef LANES
#undef WIDTH
#undef VMAX
#undef SHUFFLE
#undef KEY
#undef NAME
