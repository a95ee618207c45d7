// The depthwise convolution and its gradient with respect to the input, for one vector of channels.
//
// Maps are (pixel, lane). Rows are activated, or normalised backwards, as they enter a ring of `kernel` rows
// with zeros around them, so that taps need no bounds.
#pragma once

#include "norms.h"

namespace tinytl {

constexpr long MAX_KERNEL = 11;

// A convolution of a map; output row y begins at input row y * stride - top, likewise columns.
struct Window {
  long height, width, out_height, out_width;
  long kernel, stride, top, left;

  long area() const { return height * width; }
  long out_area() const { return out_height * out_width; }
};

// tile[p] += sum over rows and taps of taps * pixels. From tap to tap the pixels move by `step`, the taps by
// `tap_step` elements, and from pixel to pixel of the tile by STRIDE vectors.
template <long STRIDE, typename T, int P>
TINYTL_INLINE void add_taps(const T* const* rows, const T* const* taps, long row_count, long tap_count, long step,
                            long tap_step, long offset, Vector<T> (&tile)[P]) {
  for (long r = 0; r < row_count; r++) {
    const T *source = rows[r] + offset, *weights = taps[r];
    for (long k = 0; k < tap_count; k++, source += step, weights += tap_step) {
      const Vector<T> weight = load(weights);
      TINYTL_UNROLL for (int p = 0; p < P; p++) tile[p] += weight * load(source + p * STRIDE * LANES<T>);
    }
  }
}

// Columns of a row in the ring of `filter`, and of `filter_backward`.
inline long filter_columns(const Window& w) {
  const long read = (w.out_width - 1) * w.stride + w.kernel, written = w.left + w.width;
  return read > written ? read : written;
}
inline long filter_backward_columns(const Window& w) { return w.out_width + 2 * w.kernel; }

// out = the convolution of act(x * factor + offset). `sums`, if given, sums the output.
template <long STRIDE, typename T>
void filter_strided(const Window& w, const Activation& act, const T* x, Vector<T> factor, Vector<T> offset,
                    const T* taps, T* ring, T* out, Sums<T>* sums) {
  constexpr long L = LANES<T>;
  const long k = w.kernel, row = filter_columns(w) * L;
  std::memset(ring, 0, sizeof(T) * k * row);
  Sums<T> own;
  long filled = 0;  // input rows that have entered the ring
  for (long y = 0; y < w.out_height; y++) {
    const long top = y * STRIDE - w.top;
    for (; filled < w.height && filled < top + k; filled++)
      activate<T>(act, x + filled * w.width * L, w.width, factor, offset, ring + filled % k * row + w.left * L);
    const T *rows[MAX_KERNEL], *row_taps[MAX_KERNEL];
    long count = 0;
    for (long i = 0; i < k; i++)
      if (top + i >= 0 && top + i < w.height) {
        rows[count] = ring + (top + i) % k * row;
        row_taps[count++] = taps + i * k * L;
      }
    for_tiles<T>(w.out_width, [&]<int P>(long start) TINYTL_INLINE_LAMBDA {
      Vector<T> tile[P];
      TINYTL_UNROLL for (int p = 0; p < P; p++) tile[p] = Vector<T>{};
      add_taps<STRIDE, T>(rows, row_taps, count, k, L, L, start * STRIDE * L, tile);
      TINYTL_UNROLL for (int p = 0; p < P; p++) store(out + (y * w.out_width + start + p) * L, tile[p]);
      if (!sums) return;
      if (y == 0 && start == 0) own.first = tile[0];
      own.template add<P>(tile, 1);
    });
  }
  if (sums) *sums = own;
}

template <typename T>
void filter(const Window& w, const Activation& act, const T* x, Vector<T> factor, Vector<T> offset, const T* taps,
            T* ring, T* out, Sums<T>* sums) {
  if (w.stride == 1) return filter_strided<1, T>(w, act, x, factor, offset, taps, ring, out, sums);
  filter_strided<2, T>(w, act, x, factor, offset, taps, ring, out, sums);
}

// The gradient with respect to the filter's output: that of the norm after it, applied to `grad`.
template <typename T>
struct FilterGradient {
  const T *grad, *output;  // (out_area, lanes); output is not read where the norm's statistics are stored
  Vector<T> mean;
  Coefficients<T> norm;
  bool stored;

  void row(long start, long count, T* target) const {
    constexpr long L = LANES<T>;
    if (stored)
      for (long p = start; p < start + count; p++, target += L) store(target, load(grad + p * L) * norm.factor);
    else
      for (long p = start; p < start + count; p++, target += L)
        store(target, load(grad + p * L) * norm.factor + (load(output + p * L) - mean) * norm.along +
                          norm.constant);
  }
};

// out = the gradient with respect to the filter's input; where there is a norm before the filter, that with
// respect to this norm's output before the activation, summed in `sums`. x is the input of the norm; out may
// be x. With stride 2, each parity of rows and columns has taps of its own.
template <long STRIDE, typename T>
void filter_backward_strided(const Window& w, const FilterGradient<T>& gradient, const T* taps, T* ring,
                             const Norm<T>* norm, const ChannelNorm<T>& own, const T* x, T* out,
                             GradSums<T>& sums) {
  constexpr long L = LANES<T>;
  const long k = w.kernel, row = filter_backward_columns(w) * L;
  std::memset(ring, 0, sizeof(T) * k * row);
  GradSums<T> totals;
  long filled = 0;  // output rows that have entered the ring
  for (long y = 0; y < w.height; y++) {
    for (; filled < w.out_height && filled <= (y + w.top) / STRIDE; filled++)
      gradient.row(filled * w.out_width, w.out_width, ring + filled % k * row + k * L);
    const T *rows[MAX_KERNEL], *row_taps[MAX_KERNEL];
    long count = 0;
    for (long i = (y + w.top) % STRIDE; i < k && i <= y + w.top; i += STRIDE) {
      const long out_y = (y + w.top - i) / STRIDE;
      if (out_y >= w.out_height) continue;
      rows[count] = ring + out_y % k * row + k * L;
      row_taps[count++] = taps + i * k * L;
    }
    for (long x0 = 0; x0 < STRIDE; x0++) {
      const long first_tap = (x0 + w.left) % STRIDE, tap_count = ceil_div(k - first_tap, STRIDE);
      const T* shifted[MAX_KERNEL];
      for (long i = 0; i < count; i++) shifted[i] = row_taps[i] + first_tap * L;
      const long columns = ceil_div(w.width - x0, STRIDE), base = (x0 + w.left - first_tap) / STRIDE;
      for_tiles<T>(columns, [&]<int P>(long start) TINYTL_INLINE_LAMBDA {
        Vector<T> tile[P], centred[P];
        TINYTL_UNROLL for (int p = 0; p < P; p++) tile[p] = Vector<T>{};
        add_taps<1, T>(rows, shifted, count, tap_count, -L, STRIDE * L, (base + start) * L, tile);
        const long at = (y * w.width + x0 + STRIDE * start) * L;
        if (norm) {
          TINYTL_UNROLL for (int p = 0; p < P; p++) centred[p] = load(x + at + p * STRIDE * L) - own.mean;
          gate_tile<T, P>(*norm, own, tile, centred, totals);
        }
        TINYTL_UNROLL for (int p = 0; p < P; p++) store(out + at + p * STRIDE * L, tile[p]);
      });
    }
  }
  sums = totals;
}

template <typename T>
void filter_backward(const Window& w, const FilterGradient<T>& gradient, const T* taps, T* ring,
                     const Norm<T>* norm, const ChannelNorm<T>& own, const T* x, T* out, GradSums<T>& sums) {
  if (w.stride == 1) return filter_backward_strided<1, T>(w, gradient, taps, ring, norm, own, x, out, sums);
  filter_backward_strided<2, T>(w, gradient, taps, ring, norm, own, x, out, sums);
}

}  // namespace tinytl
