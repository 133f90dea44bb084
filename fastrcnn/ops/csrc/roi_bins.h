// The edges of the bins of an RoI. The CPU kernel and the CUDA kernel share this definition.
//
// reference.py contains the same definition in Python. All arithmetic that determines an edge is float32, with exact
// division and without fused multiply-add. Both matter: see docs/roi_pooling.md.
#ifndef ROI_BINS_H
#define ROI_BINS_H

#ifndef ROI_FN
#define ROI_FN static inline
#endif

enum { ROI_FAST_RCNN = 0, ROI_PARTITION = 1, ROI_TRUNCATE = 2 };

typedef struct {
    int first, length;  // cells, before clipping to the map
} RoiExtent;

typedef struct {
    int start, stop;  // half-open, clipped to the map; the bin is empty if start >= stop
} RoiRange;

// Clamps a coordinate to +-2^28, so that int arithmetic cannot overflow. No map is this large. NaN becomes -2^28.
ROI_FN float roi_near(float x) { return fminf(fmaxf(x, -268435456.0f), 268435456.0f); }

// Returns the RoI's cells along one axis, given its two coordinates in image pixels.
ROI_FN RoiExtent roi_extent(float start, float end, float scale, int variant) {
    RoiExtent e;
    if (variant == ROI_FAST_RCNN) {  // roundf rounds half away from zero; the end is inclusive
        e.first = (int)roundf(roi_near(start * scale));
        e.length = (int)roundf(roi_near(end * scale)) - e.first + 1;
    } else if (variant == ROI_PARTITION) {  // the end is exclusive
        e.first = (int)floorf(roi_near(start * scale));
        e.length = (int)floorf(roi_near(end * scale)) - e.first;
    } else {  // the length is scaled and rounded separately
        e.first = (int)floorf(roi_near(start * scale));
        e.length = (int)floorf(roi_near((end - start) * scale));
    }
    if (e.length < 1) e.length = 1;
    return e;
}

ROI_FN int roi_clip(int x, int cells) { return x < 0 ? 0 : x > cells ? cells : x; }

// Returns bin i of `parts` along one axis of a map of `cells`.
ROI_FN RoiRange roi_bin(RoiExtent e, int i, int parts, int cells, int variant) {
    int start, stop;
    if (variant == ROI_FAST_RCNN) {
        float step = (float)e.length / (float)parts;
        start = (int)floorf((float)i * step);
        stop = (int)ceilf((float)(i + 1) * step);
    } else if (variant == ROI_PARTITION) {
        start = (int)((long long)i * e.length / parts);
        stop = (int)((long long)(i + 1) * e.length / parts);
        if (stop <= start) stop = start + 1;
    } else {
        int step = e.length / parts > 1 ? e.length / parts : 1;
        start = (long long)i * step < e.length ? i * step : e.length - 1;
        stop = e.length - start < step ? e.length : start + step;
    }
    RoiRange r = {roi_clip(e.first + start, cells), roi_clip(e.first + stop, cells)};
    return r;
}

#endif
