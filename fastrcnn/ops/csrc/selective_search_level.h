// The search of one image for one instruction set. See instruction_sets.h.
//
// Floating-point operations are written out in a fixed order and never fused, so all instruction sets give the same
// bits. This file uses no templates of the standard library, and everything is in an unnamed namespace. Otherwise the
// linker could keep a template compiled for a newer processor as the only copy.

namespace LEVEL {
namespace {

// The number of planes that are filtered together, which is the number of floats in a register. Compilers split longer
// vectors; some compilers split them into single numbers.
constexpr int LANES = LANE_BYTES / 4;
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(2 * LANES)));

constexpr int SUMS = 16;       // partial sums of a histogram intersection, for every instruction set
constexpr int COLOURS = 25;    // bins of a colour histogram
constexpr int TEXTURES = 10;   // bins of a texture histogram; a plane has eight, for four directions and two signs
constexpr int CODES = 24;      // counters of a direction: 10 negative bins, 10 positive bins, 1 for zero, 3 unused
constexpr int COUNTERS = 128;  // counters of a plane: four directions, then the colours

template <class T>
inline T smaller(T a, T b) {
    return a < b ? a : b;
}

template <class T>
inline T larger(T a, T b) {
    return a > b ? a : b;
}

template <class T>
inline void exchange(T& a, T& b) {
    const T c = a;
    a = b;
    b = c;
}

// Exchanges a and b if the condition is true. There is no branch, because the condition is unpredictable.
inline void exchange_if(bool condition, int32_t& a, int32_t& b) {
    const int32_t difference = (a ^ b) & -(int32_t)condition;
    a ^= difference;
    b ^= difference;
}

inline int reflected(int i, int n) {  // gfedcb|abcdefgh|gfedcba
    if (n == 1) return 0;
    while (i < 0 || i >= n) i = i < 0 ? -i : 2 * n - 2 - i;
    return i;
}

// --- blur ---

// Blurs a plane with a symmetric kernel, first along the rows and then along the columns.
void blur(const Search& s, const uint8_t* plane, Arena& arena, float* out) {
    const Arena::Mark mark(arena);
    const int h = s.height, w = s.width, r = s.taps / 2;
    auto inside = [&](int i, int n) { return s.texture ? larger(0, smaller(i, n - 1)) : reflected(i, n); };
    float* rows = arena.take<float>((size_t)h * w);
    float* padded = arena.take<float>((size_t)w + 2 * r);
    for (int y = 0; y < h; y++) {
        const uint8_t* row = plane + (size_t)y * w;
        for (int x = 0; x < r; x++) {
            padded[x] = row[inside(x - r, w)];
            padded[r + w + x] = row[inside(w + x, w)];
        }
        for (int x = 0; x < w; x++) padded[r + x] = row[x];
        float* to = rows + (size_t)y * w;
        for (int x = 0; x < w; x++) to[x] = padded[x] * s.kernel[0];
        for (int t = 1; t < s.taps; t++) {
            const float weight = s.kernel[t];
            const float* from = padded + t;
            for (int x = 0; x < w; x++) to[x] += from[x] * weight;
        }
    }
    for (int y = 0; y < h; y++) {
        const float* middle = rows + (size_t)y * w;
        float* to = out + (size_t)y * w;
        for (int x = 0; x < w; x++) to[x] = middle[x] * s.kernel[r];
        for (int t = 1; t <= r; t++) {
            const float* above = rows + (size_t)inside(y - t, h) * w;
            const float* below = rows + (size_t)inside(y + t, h) * w;
            const float weight = s.kernel[r + t];
            for (int x = 0; x < w; x++) to[x] += (above[x] + below[x]) * weight;
        }
    }
}

// --- edges ---

// An edge between a pixel and one of its neighbours. The upper half contains the bits of its weight, and the lower half
// its code, which is 4 * pixel + direction.
typedef uint64_t Edge;

enum { RIGHT, DOWN, RIGHT_DOWN, RIGHT_UP };

inline float weight_of(Edge e) {
    const uint32_t bits = (uint32_t)(e >> 32);
    float weight;
    memcpy(&weight, &bits, 4);
    return weight;
}

// Computes the colour distances between two rows of n pixels.
void distances(const float* const* from, const float* const* to, int channels, int n, float* sums) {
    for (int x = 0; x < n; x++) sums[x] = 0;
    for (int c = 0; c < channels; c++) {
        const float *a = from[c], *b = to[c];
        for (int x = 0; x < n; x++) {
            const double d = a[x] - b[x];
            sums[x] = (float)((double)sums[x] + d * d);
        }
    }
    for (int x = 0; x < n; x++) sums[x] = __builtin_sqrtf(sums[x]);
}

// Returns all edges of a colour image, sorted by weight, then by pixel, then by direction.
const Edge* sorted_edges(const Search& s, const float* const* planes, int channels, Arena& arena, size_t* count) {
    const int h = s.height, w = s.width;
    const bool diagonals = s.texture != nullptr;
    const size_t n = (size_t)h * (w - 1) + (size_t)(h - 1) * w + (diagonals ? 2 * (size_t)(h - 1) * (w - 1) : 0);
    Edge *edges = arena.take<Edge>(n + 1), *other = arena.take<Edge>(n + 1);
    const float **from = arena.take<const float*>(channels), **to = arena.take<const float*>(channels);
    float* weights = arena.take<float>(4 * (size_t)w);
    uint32_t* tallies = arena.take<uint32_t>(3 * 2048);
    memset(tallies, 0, 3 * 2048 * sizeof(uint32_t));
    Edge* e = edges;
    auto add = [&](float weight, size_t code) {
        uint32_t key;
        memcpy(&key, &weight, 4);
        tallies[key & 2047]++;
        tallies[2048 + (key >> 11 & 2047)]++;
        tallies[4096 + (key >> 22)]++;
        *e++ = (Edge)key << 32 | (uint32_t)code;
    };
    for (int y = 0; y < h; y++) {
        auto measure = [&](int direction, ptrdiff_t step, int pixels) {
            for (int c = 0; c < channels; c++) {
                from[c] = planes[c] + (size_t)y * w;
                to[c] = from[c] + step;
            }
            distances(from, to, channels, pixels, weights + (size_t)direction * w);
        };
        const bool above = y > 0, below = y + 1 < h;
        measure(RIGHT, 1, w - 1);
        if (below) measure(DOWN, w, w);
        if (diagonals && below) measure(RIGHT_DOWN, w + 1, w - 1);
        if (diagonals && above) measure(RIGHT_UP, 1 - w, w - 1);
        for (int x = 0; x < w; x++) {
            const bool right = x + 1 < w;
            auto add_if = [&](bool present, int direction) {
                if (present) add(weights[(size_t)direction * w + x], ((size_t)y * w + x) * 4 + direction);
            };
            add_if(right, RIGHT);
            add_if(below, DOWN);
            add_if(diagonals && right && below, RIGHT_DOWN);
            add_if(diagonals && right && above, RIGHT_UP);
        }
    }
    for (int pass = 0; pass < 3; pass++) {
        uint32_t* tally = tallies + 2048 * pass;
        const int shift = 32 + 11 * pass;
        if (n == 0 || tally[edges[0] >> shift & 2047] == n) continue;  // all keys have the same digit
        uint32_t sum = 0;
        for (int i = 0; i < 2048; i++) {
            const uint32_t here = tally[i];
            tally[i] = sum;
            sum += here;
        }
        for (size_t i = 0; i < n; i++) other[tally[edges[i] >> shift & 2047]++] = edges[i];
        exchange(edges, other);
    }
    *count = n;
    return edges;
}

// --- segmentation ---

// A member of a set in a union-find structure. A look-up needs only one access, because a union renames all members of
// the smaller set. Look-ups are by far the most frequent operation, and following chains of unknown length would be
// slower.
struct Member {
    int32_t name, next;  // the member that names the set, and the next member in the circular list
    int32_t size;        // of the set in pixels, if this member names it
    float limit;         // the largest weight of an edge that can join the set to another one
};

// Joins the sets named by a and b by renaming the members of b.
inline void unite(Member* members, int32_t a, int32_t b) {
    members[b].name = a;
    int32_t i = members[b].next;  // b if it is the only member; most sets have at most two and need no loop
    members[i].name = a;
    while ((i = members[i].next) != b) members[i].name = a;
    exchange(members[a].next, members[b].next);
    members[a].size += members[b].size;
}

constexpr size_t AHEAD = 16;  // prefetch distance in edges

struct Join {
    int32_t a, b;
    float weight;
};

// The segments that all k have in common, called atoms. Segments are joined as for the smallest k until a join is
// rejected. The two segments of the rejected join are then final. A segment that would be joined with a final segment
// is final too. Up to this point, a larger k joins the same pixels, because the edges are the same and its limits are
// higher. For each k, only the edges between atoms remain to be processed.
struct Atoms {
    int32_t count;
    int32_t* of_pixel;
    int32_t* size;
    float* inner;  // the largest weight inside the atom
    Join* joins;   // edges between atoms by weight; for each pair of atoms usually only the first one
    size_t join_count;
};

constexpr int SLOT_BITS = 15;  // size of the table of recently found pairs of atoms
constexpr size_t SLOTS = (size_t)1 << SLOT_BITS;

Atoms atoms_of(const Search& s, const Edge* edges, size_t edge_count, float k, Arena& arena) {
    const int32_t n = s.height * s.width, w = s.width, steps[] = {1, w, w + 1, 1 - w};  // by direction
    Atoms atoms;
    atoms.of_pixel = arena.take<int32_t>(n);
    atoms.size = arena.take<int32_t>(n);
    atoms.inner = arena.take<float>(n);
    atoms.joins = arena.take<Join>(edge_count + 1);
    const Arena::Mark mark(arena);
    Member* member = arena.take<Member>(n);
    int32_t* number = arena.take<int32_t>(n);
    uint64_t* seen = arena.take<uint64_t>(SLOTS);
    for (int32_t i = 0; i < n; i++) {
        member[i] = {i, i, 1, k};
        number[i] = -1;
        atoms.inner[i] = 0;
    }
    Join* left = atoms.joins;
    for (size_t i = 0; i < edge_count; i++) {
        const uint32_t later = (uint32_t)edges[smaller(i + AHEAD, edge_count - 1)];
        __builtin_prefetch(member + (later >> 2));
        __builtin_prefetch(member + (later >> 2) + w);
        const uint32_t code = (uint32_t)edges[i];
        const int32_t from = (int32_t)(code >> 2);
        int32_t a = member[from].name, b = member[from + steps[code & 3]].name;
        if (a == b) continue;
        const float weight = weight_of(edges[i]);
        if (weight <= member[a].limit && weight <= member[b].limit) {
            exchange_if(member[a].size < member[b].size, a, b);
            unite(member, a, b);
            atoms.inner[a] = weight;
            member[a].limit = weight + k / (float)member[a].size;
        } else {
            member[a].limit = member[b].limit = -1;  // both are final
            *left++ = {a, b, weight};
        }
    }
    atoms.count = 0;  // numbered by first pixel, so `inner` can be compacted in place
    for (int32_t i = 0; i < n; i++) {
        const int32_t name = member[i].name;
        if (number[name] < 0) {
            atoms.size[atoms.count] = member[name].size;
            atoms.inner[atoms.count] = atoms.inner[name];
            number[name] = atoms.count++;
        }
        atoms.of_pixel[i] = number[name];
    }
    // Only the first edge between two atoms matters: either it joins them, or one of the two segments is rejected and
    // never grows again. The table keeps only the last pair of each slot. A duplicate edge that remains only costs
    // time.
    memset(seen, 0, SLOTS * sizeof(uint64_t));
    atoms.join_count = 0;
    for (const Join* join = atoms.joins; join < left; join++) {
        const int32_t a = number[join->a], b = number[join->b];
        const uint64_t pair = (uint64_t)smaller(a, b) << 32 | (uint32_t)larger(a, b);
        uint64_t& slot = seen[pair * 0x9e3779b97f4a7c15 >> (64 - SLOT_BITS)];
        const size_t fresh = slot != pair;
        slot = pair;
        atoms.joins[atoms.join_count] = {a, b, join->weight};
        atoms.join_count += fresh;
    }
    return atoms;
}

// Computes the segments for one k. Writes a label for each atom, numbered by the first pixel of the segments, and
// returns the number of segments.
int32_t segment(const Atoms& atoms, float k, int32_t min_size, Arena& arena, int32_t* labels) {
    const Arena::Mark mark(arena);
    const int32_t n = atoms.count;
    Member* member = arena.take<Member>(n);
    int32_t *atoms_in = arena.take<int32_t>(n), *number = arena.take<int32_t>(n);
    Join *refused = arena.take<Join>(atoms.join_count + 1), *end = refused;
    for (int32_t i = 0; i < n; i++) {
        member[i] = {i, i, atoms.size[i], atoms.inner[i] + k / (float)atoms.size[i]};
        atoms_in[i] = 1;
        number[i] = -1;
    }
    auto join = [&](int32_t a, int32_t b) {
        exchange_if(atoms_in[a] < atoms_in[b], a, b);
        unite(member, a, b);
        atoms_in[a] += atoms_in[b];
        return a;
    };
    for (const Join *j = atoms.joins, *last = j + atoms.join_count; j < last; j++) {
        const int32_t a = member[j->a].name, b = member[j->b].name;
        const bool apart = a != b;
        if (apart & (j->weight <= smaller(member[a].limit, member[b].limit))) {
            const int32_t whole = join(a, b);
            member[whole].limit = j->weight + k / (float)member[whole].size;
        } else {  // rejected, or already in one segment; no branch, because this is unpredictable
            *end = {a, b, j->weight};
            end += apart;
        }
    }
    for (const Join* j = refused; j < end; j++) {  // join each too small segment to its most similar neighbour
        const int32_t a = member[j->a].name, b = member[j->b].name;
        if (a != b && (member[a].size < min_size || member[b].size < min_size)) join(a, b);
    }
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) {
        const int32_t name = member[i].name;
        if (number[name] < 0) number[name] = count++;
        labels[i] = number[name];
    }
    return count;
}

// A part is a set of pixels that are in the same segment for every k processed so far. Splits the parts by the labels
// of another k, in place, and returns the new number of parts. Parts are numbered by their first pixel.
int32_t split_parts(int32_t* parts, int32_t part_count, const int32_t* labels, int32_t label_count, int32_t n,
                    Arena& arena) {
    const Arena::Mark mark(arena);
    int32_t *first = arena.take<int32_t>((size_t)part_count + 1), *sorted = arena.take<int32_t>(n);
    int32_t *owner = arena.take<int32_t>(label_count), *split = arena.take<int32_t>(label_count);
    int32_t* fresh = arena.take<int32_t>(n);
    memset(first, 0, ((size_t)part_count + 1) * sizeof(int32_t));
    for (int32_t i = 0; i < n; i++) first[parts[i] + 1]++;
    for (int32_t p = 0; p < part_count; p++) first[p + 1] += first[p];
    for (int32_t i = 0; i < n; i++) sorted[first[parts[i]]++] = i;
    memset(owner, 0xff, (size_t)label_count * sizeof(int32_t));
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) {
        const int32_t atom = sorted[i], label = labels[atom];
        if (owner[label] != parts[atom]) {
            owner[label] = parts[atom];
            split[label] = count++;
        }
        fresh[atom] = split[label];
    }
    int32_t* number = sorted;
    memset(number, 0xff, (size_t)count * sizeof(int32_t));
    int32_t next = 0;
    for (int32_t i = 0; i < n; i++) {
        if (number[fresh[i]] < 0) number[fresh[i]] = next++;
        parts[i] = number[fresh[i]];
    }
    return count;
}

struct Box {
    int32_t x1, y1, x2, y2;  // half-open
};

inline Box around(Box a, Box b) {
    return {smaller(a.x1, b.x1), smaller(a.y1, b.y1), larger(a.x2, b.x2), larger(a.y2, b.y2)};
}

inline int64_t area(Box b) { return (int64_t)(b.x2 - b.x1) * (b.y2 - b.y1); }

struct Pair {
    int32_t a, b;
};

// Removes duplicate pairs and pairs of equal numbers, in place. The result has the smaller number of each pair first
// and is sorted by it. Returns the number of pairs.
size_t distinct(Pair* pairs, size_t n, int32_t numbers, Arena& arena) {
    const Arena::Mark mark(arena);
    int32_t *first = arena.take<int32_t>((size_t)numbers + 1), *others = arena.take<int32_t>(n);
    int32_t* seen = arena.take<int32_t>(numbers);
    memset(first, 0, ((size_t)numbers + 1) * sizeof(int32_t));
    memset(seen, 0xff, (size_t)numbers * sizeof(int32_t));
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        Pair p = pairs[i];
        if (p.a == p.b) continue;
        if (p.a > p.b) exchange(p.a, p.b);
        first[p.a + 1]++;
        pairs[kept++] = p;
    }
    for (int32_t a = 0; a < numbers; a++) first[a + 1] += first[a];
    for (size_t i = 0; i < kept; i++) others[first[pairs[i].a]++] = pairs[i].b;
    size_t count = 0;
    for (int32_t a = 0, i = 0; a < numbers; a++)
        for (; i < first[a]; i++)
            if (seen[others[i]] != a) {
                seen[others[i]] = a;
                pairs[count++] = {a, others[i]};
            }
    return count;
}

// --- gradients ---

// The four Scharr derivatives of all planes, computed LANES planes at a time. Two are the horizontal and the vertical
// derivative. The other two are the same derivatives of the image rotated by 45 degrees, at the original pixels. The
// code of a pixel and plane has four bytes, one for each derivative: 0 to 9 is the bin of a negative derivative, 10 to
// 19 is the bin of a positive one, and 20 means zero. The bins divide the range between the smallest and the largest
// derivative of the plane. 0, CODES, 2 CODES and 3 CODES are added to the four bytes.
struct Gradients {
    uint32_t* codes;  // [pixels][planes, padded to a multiple of LANES]
    int stride;
    const uint8_t* nothing_positive;  // [planes][4], the bin of a pixel without a positive gradient
    const uint8_t* nothing_negative;
};

// An affine map from the points of one grid to those of another.
struct Rotation {
    float a, b, c, d, e, f;  // x' = a x + b y + c, y' = d x + e y + f
};

// Returns the inverse of the matrix that cv::getRotationMatrix2D returns, with a shift.
Rotation inverse_rotation(double degrees, double x, double y, double shift_x, double shift_y) {
    const double angle = degrees * M_PI / 180, alpha = cos(angle), beta = sin(angle);
    const double m[6] = {alpha, beta, (1 - alpha) * x - beta * y + shift_x,
                         -beta, alpha, beta * x + (1 - alpha) * y + shift_y};
    const double scale = 1 / (m[0] * m[4] - m[1] * m[3]);
    const double a = m[4] * scale, b = -m[1] * scale, d = -m[3] * scale, e = m[0] * scale;
    return {(float)a, (float)b, (float)(-a * m[2] - b * m[5]), (float)d, (float)e, (float)(-d * m[2] - e * m[5])};
}

// Conversions go through Ints, because compilers split direct conversions into smaller vectors. Pixels are stored as
// Shorts, which can be summed without a conversion.
inline Floats floats(Shorts v) { return __builtin_convertvector(__builtin_convertvector(v, Ints), Floats); }

inline Shorts shorts(Floats v) { return __builtin_convertvector(__builtin_convertvector(v, Ints), Shorts); }

// Interpolates bilinearly between four cells of a grid. value(i) returns the value of cell i. Cells outside are 0.
template <class Value>
inline Floats sampled(int h, int w, float x, float y, const Value& value) {
    const int ix = (int)__builtin_floorf(x), iy = (int)__builtin_floorf(y);
    const float ax = x - (float)ix, ay = y - (float)iy;
    Floats p[4];
    if (ix >= 0 && iy >= 0 && ix + 1 < w && iy + 1 < h) {
        const size_t at = (size_t)iy * w + ix;
        p[0] = value(at);
        p[1] = value(at + 1);
        p[2] = value(at + w);
        p[3] = value(at + w + 1);
    } else
        for (int i = 0; i < 4; i++) {
            const int xi = ix + (i & 1), yi = iy + (i >> 1);
            p[i] = xi < 0 || yi < 0 || xi >= w || yi >= h ? Floats{} : value((size_t)yi * w + xi);
        }
    const Floats top = p[0] + ax * (p[1] - p[0]), bottom = p[2] + ax * (p[3] - p[2]);
    return top + ay * (bottom - top);
}

inline Floats rounded(Floats v) { return (v + 12582912.0f) - 12582912.0f; }  // half to even; valid only below 2^22

// Computes the Scharr derivatives at the pixel `at`. `left`, `right`, `up` and `low` are the offsets of its neighbours.
inline void scharr(const Shorts* at, ptrdiff_t left, ptrdiff_t right, ptrdiff_t up, ptrdiff_t low, Shorts* across,
                   Shorts* down) {
    const Shorts a = at[up + left], b = at[up], c = at[up + right];
    const Shorts d = at[left], e = at[right];
    const Shorts f = at[low + left], g = at[low], h = at[low + right];
    *across = 3 * (c - a + h - f) + 10 * (e - d);
    *down = 3 * (f - a + h - c) + 10 * (g - b);
}

constexpr int STRIP = 32;  // columns that are processed together, so that rotated accesses stay in the cache

// Calls use(x, y) for all pixels of a grid, strip by strip.
template <class Use>
inline void each_pixel(int h, int w, const Use& use) {
    for (int begin = 0; begin < w; begin += STRIP) {
        const int end = smaller(begin + STRIP, w);
        for (int y = 0; y < h; y++)
            for (int x = begin; x < end; x++) use(x, y);
    }
}

// Calls use(x, y, across, down) for all pixels of a grid. The grid is reflected at its edges.
template <class Use>
inline void each_scharr(const Shorts* grid, int h, int w, const Use& use) {
    each_pixel(h, w, [&](int x, int y) {
        const ptrdiff_t up = (ptrdiff_t)(y > 0 ? -1 : reflected(-1, h)) * w;
        const ptrdiff_t low = (ptrdiff_t)(y + 1 < h ? 1 : reflected(h, h) - y) * w;
        const ptrdiff_t left = x > 0 ? -1 : reflected(-1, w), right = x + 1 < w ? 1 : reflected(w, w) - x;
        Shorts across, down;
        scharr(grid + (size_t)y * w + x, left, right, up, low, &across, &down);
        use(x, y, across, down);
    });
}

struct Scale {
    Floats factor, shift;
};

// Returns the linear map from least..most to 0..255. If both are equal, its results are NaN, which is treated as 0.
inline Scale scale_to_bytes(Floats least, Floats most) {
    Scale s;
    for (int i = 0; i < LANES; i++) {
        const double range = (double)most[i] - (double)least[i];
        s.factor[i] = (float)(255 / range);
        s.shift[i] = (float)(-255.0 * (double)least[i] / range);
    }
    return s;
}

inline Ints bins(Floats v, Scale s) {
    Floats byte = rounded(v * s.factor + s.shift);
    byte = byte > 0 ? byte : Floats{};
    byte = byte < 255 ? byte : Floats{} + 255;
    return __builtin_convertvector(byte, Ints) * TEXTURES >> 8;
}

Gradients gradients_of(const Search& s, Arena& arena) {
    const int h = s.height, w = s.width, groups = (s.planes + LANES - 1) / LANES;
    const size_t n = (size_t)h * w;
    Gradients out;
    out.stride = groups * LANES;
    out.codes = arena.take<uint32_t>(n * out.stride);
    uint8_t* nothing = arena.take<uint8_t>((size_t)out.stride * 8);
    out.nothing_positive = nothing;
    out.nothing_negative = nothing + (size_t)out.stride * 4;
    const Arena::Mark mark(arena);

    // The size of the rotated image, which contains the entire original.
    const float half = (float)sqrt(0.5) * 0.5f;
    const float x0 = w / 2.0f - half * (float)h - half * (float)w, y0 = h / 2.0f - half * (float)h - half * (float)w;
    const int rw = (int)ceilf((float)w - x0) - (int)floorf(x0) + 1;
    const int rh = (int)ceilf((float)h - y0) - (int)floorf(y0) + 1;
    const Rotation to = inverse_rotation(45, w / 2.0, h / 2.0, rw / 2.0 - w / 2.0, rh / 2.0 - h / 2.0);
    const Rotation back = inverse_rotation(-45, rw / 2, rh / 2, 0, 0);
    const int left = (rw - w) / 2, top = (rh - h) / 2;

    Shorts* image = arena.take<Shorts>(n);
    Shorts* rotated = arena.take<Shorts>((size_t)rw * rh);
    struct Slope {
        Shorts across, down;
    };
    Slope* slopes = arena.take<Slope>((size_t)rw * rh);  // derivatives of the rotated image
    for (int g = 0; g < groups; g++) {
        const int planes = smaller(LANES, s.planes - g * LANES);
        memset(image, 0, n * sizeof(Shorts));
        for (size_t begin = 0; begin < n; begin += 256)  // written memory stays in the L1 cache
            for (int p = 0; p < planes; p++)
                for (size_t i = begin; i < n && i < begin + 256; i++) ((int16_t*)(image + i))[p] = s.plane[g * LANES + p][i];
        each_pixel(rh, rw, [&](int x, int y) {
            const float px = (float)x * to.a + ((float)y * to.b + to.c);
            const float py = (float)x * to.d + ((float)y * to.e + to.f);
            Shorts& cell = rotated[(size_t)y * rw + x];
            if (px <= -1 || py <= -1 || px >= (float)w || py >= (float)h)
                cell = Shorts{};
            else
                cell = shorts(rounded(sampled(h, w, px, py, [&](size_t i) { return floats(image[i]); })));
        });
        each_scharr(rotated, rh, rw, [&](int x, int y, Shorts a, Shorts d) {
            slopes[(size_t)y * rw + x] = {a, d};
        });
        auto four_at = [&](int x, int y, Shorts a, Shorts d, Floats* four) {
            const float rx = (float)(x + left), ry = (float)(y + top);
            const float px = rx * back.a + (ry * back.b + back.c), py = rx * back.d + (ry * back.e + back.f);
            four[0] = floats(a);
            four[1] = floats(d);
            four[2] = sampled(rh, rw, px, py, [&](size_t i) { return floats(slopes[i].across); });
            four[3] = sampled(rh, rw, px, py, [&](size_t i) { return floats(slopes[i].down); });
        };
        const Floats zero = {};
        Floats least[4], most[4];
        for (int d = 0; d < 4; d++) {
            least[d] = zero + INFINITY;
            most[d] = zero - INFINITY;
        }
        each_scharr(image, h, w, [&](int x, int y, Shorts a, Shorts b) {
            Floats four[4];
            four_at(x, y, a, b, four);
            for (int d = 0; d < 4; d++) {
                least[d] = four[d] < least[d] ? four[d] : least[d];
                most[d] = four[d] > most[d] ? four[d] : most[d];
            }
        });
        Scale positive[4], negative[4];
        for (int d = 0; d < 4; d++) {
            positive[d] = scale_to_bytes(least[d] > 0 ? least[d] : zero, most[d] > 0 ? most[d] : zero);
            negative[d] = scale_to_bytes(least[d] < 0 ? least[d] : zero, most[d] < 0 ? most[d] : zero);
            const Ints above = bins(zero, positive[d]), below = bins(zero, negative[d]);
            for (int p = 0; p < LANES; p++) {
                nothing[(g * LANES + p) * 4 + d] = (uint8_t)above[p];
                nothing[(out.stride + g * LANES + p) * 4 + d] = (uint8_t)below[p];
            }
        }
        each_scharr(image, h, w, [&](int x, int y, Shorts a, Shorts b) {
            Floats four[4];
            four_at(x, y, a, b, four);
            Ints code = {};
            for (int d = 3; d >= 0; d--) {
                const Scale scale = {four[d] > 0 ? positive[d].factor : negative[d].factor,
                                     four[d] > 0 ? positive[d].shift : negative[d].shift};
                Ints bin = bins(four[d], scale) + (four[d] > 0 ? Ints{} + 10 : Ints{});
                bin = four[d] == 0 ? Ints{} + 20 : bin;
                code = (code << 8) | (bin + d * CODES);
            }
            memcpy(out.codes + ((size_t)y * w + x) * out.stride + g * LANES, &code, sizeof(code));
        });
    }
    return out;
}

// Returns the gradients for the given bins of the derivatives, s.texture.
Gradients gradients_given(const Search& s, Arena& arena) {
    const size_t n = (size_t)s.height * s.width;
    Gradients out;
    out.stride = s.planes;
    out.codes = arena.take<uint32_t>(n * s.planes);
    uint8_t* nothing = arena.take<uint8_t>((size_t)s.planes * 4);
    memset(nothing, 0, (size_t)s.planes * 4);
    out.nothing_positive = out.nothing_negative = nothing;
    for (int p = 0; p < s.planes; p++) {
        const uint8_t* bin = s.texture + 4 * n * p;
        for (size_t i = 0; i < n; i++) {
            uint32_t code = 0;
            for (int d = 0; d < 4; d++) code |= (uint32_t)(bin[n * d + i] + d * CODES) << 8 * d;
            out.codes[i * s.planes + p] = code;
        }
    }
    return out;
}

// --- the start of grouping ---

// The segments of one colour image for one k, and their histograms. A row of `histogram` contains the colour bins,
// padded with zeros to a multiple of SUMS, and then the texture bins.
struct Start {
    int32_t count;
    const int32_t* size;
    const Box* box;
    const Pair* pairs;  // pairs of neighbours
    size_t pair_count;
    float* histogram;  // [2 count][bins], with room for merged segments
    int colour_bins, bins;
};

// Counts the histograms of the parts of a colour image. A part has COUNTERS counters for each channel.
uint32_t* counted(const Search& s, const Gradients& gradients, const int32_t* channel, int channels,
                  const int32_t* part_of_pixel, int32_t parts, Arena& arena) {
    const size_t n = (size_t)s.height * s.width, stride = (size_t)channels * COUNTERS;
    uint32_t* counters = arena.take<uint32_t>((size_t)parts * stride);
    memset(counters, 0, (size_t)parts * stride * sizeof(uint32_t));
    uint8_t bin[256];
    for (int v = 0; v < 256; v++) bin[v] = (uint8_t)(4 * CODES + v * COLOURS / 256);
    for (int c = 0; c < channels; c++) {
        const uint32_t* codes = gradients.codes + channel[c];
        const uint8_t* plane = s.plane[channel[c]];
        uint32_t* base = counters + c * COUNTERS;
        for (size_t i = 0; i < n; i++) {
            uint32_t* of_part = base + part_of_pixel[i] * stride;
            const uint32_t code = codes[i * gradients.stride];
            of_part[code & 255]++;
            of_part[code >> 8 & 255]++;
            of_part[code >> 16 & 255]++;
            of_part[code >> 24]++;
            of_part[bin[plane[i]]]++;
        }
    }
    return counters;
}

// Converts the counters of a segment to its normalised histograms.
void normalise(const uint32_t* counters, const Gradients& gradients, const int32_t* channel, int channels, int32_t size,
               const Start& start, float* out) {
    const float colours = (float)size * (float)channels, textures = (float)((int64_t)size * channels * 8);
    float* colour = out;
    float* texture = out + start.colour_bins;
    for (int c = 0; c < channels; c++, counters += COUNTERS) {
        for (int i = 0; i < COLOURS; i++) *colour++ = (float)counters[4 * CODES + i] / colours;
        for (int d = 0; d < 4; d++) {
            const uint32_t* of = counters + d * CODES;
            uint32_t below = 0, above = 0;
            for (int i = 0; i < TEXTURES; i++) {
                below += of[i];
                above += of[10 + i];
            }
            const int none = gradients.nothing_positive[channel[c] * 4 + d];
            const int none_negative = gradients.nothing_negative[channel[c] * 4 + d];
            for (int i = 0; i < TEXTURES; i++) {
                const uint32_t up = of[10 + i] + (i == none ? below + of[20] : 0);
                const uint32_t low = of[i] + (i == none_negative ? above + of[20] : 0);
                texture[i] = (float)up / textures;
                texture[TEXTURES + i] = (float)low / textures;
            }
            texture += 2 * TEXTURES;
        }
    }
    for (; colour < out + start.colour_bins; colour++) *colour = 0;
}

// --- grouping ---

// Returns the intersection of two histograms of n bins, a multiple of SUMS. The order of additions is the same for all
// values of LANES.
inline float shared(const float* a, const float* b, int n) {
    constexpr int VECTORS = SUMS / LANES;
    Floats sum[VECTORS] = {};
    for (int i = 0; i < n; i += SUMS)
        for (int v = 0; v < VECTORS; v++) {
            Floats x, y;
            memcpy(&x, a + i + v * LANES, sizeof(x));
            memcpy(&y, b + i + v * LANES, sizeof(y));
            sum[v] += x < y ? x : y;
        }
    for (int half = VECTORS / 2; half; half /= 2)
        for (int v = 0; v < half; v++) sum[v] += sum[v + half];
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) sum[0][i] += sum[0][i + half];
    return sum[0][0];
}

inline void mix(const float* a, int32_t size_a, const float* b, int32_t size_b, int n, float* out) {
    const float fa = (float)size_a, fb = (float)size_b, both = (float)(size_a + size_b);
    for (int i = 0; i < n; i++) out[i] = (a[i] * fa + b[i] * fb) / both;
}

struct Candidate {
    uint64_t key;   // upper half: bits of the similarity; lower half: the newer segment
    int32_t other;  // the older segment
};

inline bool before(const Candidate& a, const Candidate& b) {
    return (a.key > b.key) | ((a.key == b.key) & (a.other > b.other));
}

// Inserts `moved` at position i of a heap, or above it, but not above `top`.
inline void sift_up(Candidate* heap, size_t i, size_t top, Candidate moved) {
    for (; i > top && before(moved, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = moved;
}

// Inserts `moved` at position i of a heap of n, or below it. The better child moves up at every level down to a leaf,
// and then `moved`, which usually belongs near a leaf, moves up from there. The only remaining branch is easy to
// predict.
void sift_down(Candidate* heap, size_t i, size_t n, Candidate moved) {
    const size_t top = i;
    for (size_t child; (child = 2 * i + 2) < n; i = child) {
        child -= before(heap[child - 1], heap[child]);
        heap[i] = heap[child];
    }
    if (2 * i + 2 == n) {
        heap[i] = heap[n - 1];
        i = n - 1;
    }
    sift_up(heap, i, top, moved);
}

void make_heap(Candidate* heap, size_t n) {
    for (size_t i = n / 2; i-- > 0;) sift_down(heap, i, n, heap[i]);
}

inline int32_t root_of(int32_t* parent, int32_t i) {
    while (parent[i] != i) {
        parent[i] = parent[parent[i]];
        i = parent[i];
    }
    return i;
}

struct Neighbour {
    int32_t segment, next;  // next: index of the list's next entry, or -1
};

// Merges the most similar neighbours by one similarity measure until one segment is left. Of pairs with the same
// similarity, the pair with the newest segment is merged first. Adds the box of every segment to `found`.
void group(const Search& s, const Start& start, int measures, const float* colours, const float* textures, Arena& arena,
           Found& found) {
    const Arena::Mark mark(arena);
    const int32_t n = start.count;
    const size_t all = 2 * (size_t)n;
    int32_t *size = arena.take<int32_t>(all), *parent = arena.take<int32_t>(all), *seen = arena.take<int32_t>(all);
    int32_t *first = arena.take<int32_t>(all), *last = arena.take<int32_t>(all);
    Box* box = arena.take<Box>(all);
    bool* alive = arena.take<bool>(all);
    Neighbour* entries = arena.take<Neighbour>(2 * start.pair_count + 1);
    const size_t room = 4 * start.pair_count + 16;
    Candidate* heap = arena.take<Candidate>(room);
    const float pixels = (float)((int64_t)s.height * s.width);
    const int count = __builtin_popcount((unsigned)measures);
    const float weight = count == 1 ? 1.0f : count == 2 ? 0.5f : count == 3 ? 0.3333f : 0.25f;
    float weights = 0;
    for (int i = 0; i < count; i++) weights += weight;

    auto similarity = [&](int32_t a, int32_t b, float colour, float texture) {
        float sum = 0;
        const int64_t both = (int64_t)size[a] + size[b];
        if (measures & COLOUR) sum += weight * colour;
        if (measures & TEXTURE) sum += weight * texture;
        if (measures & SIZE) sum += weight * larger(1.0f - (float)both / pixels, 0.0f);
        if (measures & FILL) {
            const float rest = (float)(area(around(box[a], box[b])) - both);
            sum += weight * larger(smaller(1.0f - rest / pixels, 1.0f), 0.0f);
        }
        return sum / weights;
    };
    auto candidate = [&](int32_t newer, int32_t older, float alike) {
        uint32_t bits;
        memcpy(&bits, &alike, 4);
        return Candidate{(uint64_t)bits << 32 | (uint32_t)newer, older};
    };
    auto add = [&](int32_t i) {  // n connected segments are merged n - 1 times
        found.add(box[i].x1, box[i].y1, box[i].x2 - box[i].x1, box[i].y2 - box[i].y1, 2 * n - 1 - i, size[i]);
    };
    for (int32_t i = 0; i < n; i++) {
        size[i] = start.size[i];
        box[i] = start.box[i];
        add(i);
    }
    for (size_t i = 0; i < all; i++) {
        parent[i] = (int32_t)i;
        seen[i] = first[i] = last[i] = -1;
        alive[i] = (int32_t)i < n;
    }
    int32_t next = 0;
    auto link = [&](int32_t segment, int32_t neighbour) {
        entries[next] = {neighbour, first[segment]};
        if (first[segment] < 0) last[segment] = next;
        first[segment] = next++;
    };
    size_t waiting = 0;
    for (size_t i = 0; i < start.pair_count; i++) {
        const Pair p = start.pairs[i];
        link(p.a, p.b);
        link(p.b, p.a);
        heap[waiting++] = candidate(p.b, p.a, similarity(p.a, p.b, colours[i], textures[i]));
    }
    make_heap(heap, waiting);

    for (int32_t fresh = n; fresh < 2 * n - 1;) {  // an image is connected, so one segment is left
        const int32_t a = (int32_t)(uint32_t)heap[0].key, b = heap[0].other;
        waiting--;
        sift_down(heap, 0, waiting, heap[waiting]);
        if (!alive[a] || !alive[b]) continue;
        const int32_t c = fresh++;
        alive[a] = alive[b] = false;
        alive[c] = true;
        parent[a] = parent[b] = c;
        size[c] = size[a] + size[b];
        box[c] = around(box[a], box[b]);
        add(c);
        float* histogram = start.histogram + (size_t)c * start.bins;
        const float *of_a = start.histogram + (size_t)a * start.bins, *of_b = start.histogram + (size_t)b * start.bins;
        if (measures & COLOUR) mix(of_a, size[a], of_b, size[b], start.colour_bins, histogram);
        if (measures & TEXTURE)
            mix(of_a + start.colour_bins, size[a], of_b + start.colour_bins, size[b], start.bins - start.colour_bins,
                histogram + start.colour_bins);

        // Concatenate both lists of neighbours and remove duplicates.
        first[c] = first[a];
        entries[last[a]].next = first[b];
        last[c] = -1;
        int32_t* from = &first[c];
        for (int32_t e = first[c]; e >= 0; e = entries[e].next) {
            const int32_t neighbour = root_of(parent, entries[e].segment);
            if (neighbour == c || seen[neighbour] == c) continue;
            seen[neighbour] = c;
            entries[e].segment = neighbour;
            *from = e;
            from = &entries[e].next;
            last[c] = e;
            if (waiting == room) {  // remove candidates of merged segments; at most half are alive
                size_t kept = 0;
                for (size_t i = 0; i < waiting; i++)
                    if (alive[(uint32_t)heap[i].key] && alive[heap[i].other]) heap[kept++] = heap[i];
                waiting = kept;
                make_heap(heap, waiting);
            }
            const float* of = start.histogram + (size_t)neighbour * start.bins;
            const float colour = measures & COLOUR ? shared(histogram, of, start.colour_bins) : 0;
            const float texture =
                measures & TEXTURE
                    ? shared(histogram + start.colour_bins, of + start.colour_bins, start.bins - start.colour_bins)
                    : 0;
            const Candidate pushed = candidate(c, neighbour, similarity(c, neighbour, colour, texture));
            sift_up(heap, waiting++, 0, pushed);
        }
        *from = -1;
    }
}

// --- the complete search ---

void search_colour_image(const Search& s, const Gradients& gradients, const float* const* blurred, int image,
                         Arena& arena, Found& found) {
    const Arena::Mark mark(arena);
    const int h = s.height, w = s.width, channels = s.channels[image];
    const int32_t* channel = s.channel;
    for (int i = 0; i < image; i++) channel += s.channels[i];
    const size_t n = (size_t)h * w;
    const float** planes = arena.take<const float*>(channels);
    for (int c = 0; c < channels; c++) planes[c] = blurred[channel[c]];
    size_t edge_count;
    const Edge* edges = sorted_edges(s, planes, channels, arena, &edge_count);
    float smallest = s.k[0];
    for (int i = 1; i < s.ks; i++) smallest = smaller(smallest, s.k[i]);
    const Atoms atoms = atoms_of(s, edges, edge_count, smallest, arena);

    int32_t *labels = arena.take<int32_t>((size_t)s.ks * atoms.count), *parts = arena.take<int32_t>(atoms.count);
    int32_t* counts = arena.take<int32_t>(s.ks);
    memset(parts, 0, (size_t)atoms.count * sizeof(int32_t));
    int32_t part_count = 1;
    for (int i = 0; i < s.ks; i++) {
        int32_t* of_k = labels + (size_t)i * atoms.count;
        counts[i] = segment(atoms, s.k[i], s.min_size[i], arena, of_k);
        part_count = split_parts(parts, part_count, of_k, counts[i], atoms.count, arena);
        if (s.labels) {
            int32_t* to = s.labels + ((size_t)image * s.ks + i) * n;
            for (size_t p = 0; p < n; p++) to[p] = of_k[atoms.of_pixel[p]];
        }
    }
    int32_t* atom_of_part = arena.take<int32_t>(part_count);
    for (int32_t i = atoms.count; i-- > 0;) atom_of_part[parts[i]] = i;
    int32_t* part_of_pixel = atoms.of_pixel;
    for (size_t i = 0; i < n; i++) part_of_pixel[i] = parts[atoms.of_pixel[i]];

    // Find boxes, sizes and neighbours of the parts.
    Box* part_box = arena.take<Box>(part_count);
    int32_t* part_size = arena.take<int32_t>(part_count);
    Pair* touching = arena.take<Pair>(3 * n);
    size_t touching_count = 0;
    for (int32_t i = 0; i < part_count; i++) {
        part_box[i] = {w, h, 0, 0};
        part_size[i] = 0;
    }
    for (int y = 0; y < h; y++) {
        const int32_t* row = part_of_pixel + (size_t)y * w;
        for (int x = 0; x < w;) {
            const int begin = x;
            const int32_t part = row[x];
            while (x < w && row[x] == part) x++;
            part_box[part] = around(part_box[part], {begin, y, x, y + 1});
            part_size[part] += x - begin;
            if (x < w) touching[touching_count++] = {part, row[x]};
        }
        if (y == 0) continue;
        const int32_t* above = row - w;
        int32_t was = -1, was_above = -1;
        for (int x = 0; x < w; x++) {
            if (row[x] != above[x] && (row[x] != was || above[x] != was_above))
                touching[touching_count++] = {was = row[x], was_above = above[x]};
            if (x && !s.texture && row[x] != above[x - 1] && (row[x] != was || above[x - 1] != was_above))
                touching[touching_count++] = {was = row[x], was_above = above[x - 1]};
        }
    }
    touching_count = distinct(touching, touching_count, part_count, arena);
    const uint32_t* counters = counted(s, gradients, channel, channels, part_of_pixel, part_count, arena);
    const size_t stride = (size_t)channels * COUNTERS;

    for (int i = 0; i < s.ks; i++) {
        const Arena::Mark here(arena);
        const int32_t* of_k = labels + (size_t)i * atoms.count;
        const int32_t count = counts[i];
        Start start;
        start.count = count;
        start.colour_bins = (COLOURS * channels + SUMS - 1) / SUMS * SUMS;
        start.bins = start.colour_bins + 8 * TEXTURES * channels;
        start.histogram = arena.take<float>(2 * (size_t)count * start.bins);
        int32_t* size = arena.take<int32_t>(count);
        Box* box = arena.take<Box>(count);
        Pair* pairs = arena.take<Pair>(touching_count + 1);
        uint32_t* sums = arena.take<uint32_t>((size_t)count * stride);
        memset(sums, 0, (size_t)count * stride * sizeof(uint32_t));
        for (int32_t j = 0; j < count; j++) {
            size[j] = 0;
            box[j] = {w, h, 0, 0};
        }
        for (int32_t p = 0; p < part_count; p++) {
            const int32_t segment = of_k[atom_of_part[p]];
            size[segment] += part_size[p];
            box[segment] = around(box[segment], part_box[p]);
            uint32_t* to = sums + (size_t)segment * stride;
            const uint32_t* from = counters + (size_t)p * stride;
            for (size_t j = 0; j < stride; j++) to[j] += from[j];
        }
        for (size_t j = 0; j < touching_count; j++)
            pairs[j] = {of_k[atom_of_part[touching[j].a]], of_k[atom_of_part[touching[j].b]]};
        start.pair_count = distinct(pairs, touching_count, count, arena);
        start.size = size;
        start.box = box;
        start.pairs = pairs;
        for (int32_t j = 0; j < count; j++)
            normalise(sums + (size_t)j * stride, gradients, channel, channels, size[j], start,
                      start.histogram + (size_t)j * start.bins);
        float *colours = arena.take<float>(start.pair_count + 1), *textures = arena.take<float>(start.pair_count + 1);
        for (size_t j = 0; j < start.pair_count; j++) {
            const float* a = start.histogram + (size_t)pairs[j].a * start.bins;
            const float* b = start.histogram + (size_t)pairs[j].b * start.bins;
            colours[j] = shared(a, b, start.colour_bins);
            textures[j] = shared(a + start.colour_bins, b + start.colour_bins, start.bins - start.colour_bins);
        }
        for (int m = 0; m < s.groupings; m++) group(s, start, s.measures[m], colours, textures, arena, found);
    }
}

void search(const Search& s, Arena& arena, Found& found) {
    const Arena::Mark mark(arena);
    const float** blurred = arena.take<const float*>(s.planes);
    for (int p = 0; p < s.planes; p++) {
        float* plane = arena.take<float>((size_t)s.height * s.width);
        blur(s, s.plane[p], arena, plane);
        blurred[p] = plane;
    }
    const Gradients gradients = s.texture ? gradients_given(s, arena) : gradients_of(s, arena);
    for (int i = 0; i < s.images; i++) search_colour_image(s, gradients, blurred, i, arena, found);
}

// Selects boxes in order, skipping each one whose IoU with a selected box is `near` or more. Writes the indices of the
// first `limit` selected boxes and returns their number.
int64_t thin(const float* boxes, int64_t n, float near, int64_t limit, Arena& arena, int32_t* kept) {
    const Arena::Mark mark(arena);
    struct Block {
        Floats x1, y1, x2, y2, area;
    };
    limit = smaller(limit, n);
    Block* blocks = arena.take<Block>((size_t)limit / LANES + 1);
    int64_t count = 0;
    for (int64_t i = 0; i < n && count < limit; i++) {
        const float x1 = boxes[4 * i], y1 = boxes[4 * i + 1], x2 = boxes[4 * i + 2], y2 = boxes[4 * i + 3];
        const float area = (x2 - x1) * (y2 - y1);
        const Floats zero = {};
        bool free = true;
        for (int64_t b = 0; b * LANES < count && free; b++) {
            const Block& k = blocks[b];
            Floats width = (k.x2 < x2 ? k.x2 : zero + x2) - (k.x1 > x1 ? k.x1 : zero + x1);
            Floats height = (k.y2 < y2 ? k.y2 : zero + y2) - (k.y1 > y1 ? k.y1 : zero + y1);
            const Floats both = (width > 0 ? width : zero) * (height > 0 ? height : zero);
            const Ints alike = both >= near * (area + k.area - both);
            int32_t any = 0;
            for (int l = 0; l < LANES; l++) any |= alike[l];
            free = !any;
        }
        if (!free) continue;
        Block& last = blocks[count / LANES];
        if (count % LANES == 0) last = {zero, zero, zero - 1, zero - 1, zero + INFINITY};  // overlaps nothing
        const int lane = (int)(count % LANES);
        last.x1[lane] = x1;
        last.y1[lane] = y1;
        last.x2[lane] = x2;
        last.y2[lane] = y2;
        last.area[lane] = area;
        kept[count++] = (int32_t)i;
    }
    return count;
}

}  // namespace
}  // namespace LEVEL
