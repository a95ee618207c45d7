// The weight of a grouped convolution that trains: its standardisation, and its packing for vectors whose
// lanes are channels. It is packed whenever it is used, and standardised on the way.
#pragma once

#include "plane_norms.h"

namespace tinytl {

// The fields are set in Python.
template <typename T>
struct Convolution {
  const T* weight;  // (out, in / groups, kernel, kernel)
  T* grad_weight;   // as the weight, added to; null where it is not needed
  T* rows;          // (out, 2): mean and standard deviation of the weight of each output channel
  long in, out, kernel, stride, padding, groups;
  long standardized;
  double eps;  // added to the standard deviation

  long in_group() const { return in / groups; }
  long out_group() const { return out / groups; }
  long taps() const { return kernel * kernel; }
  long row_size() const { return in_group() * taps(); }
  const T* row(long channel) const { return weight + channel * row_size(); }
};

// --- weight standardisation ------------------------------------------------------------------------

// A row of the weight is used as (w - mean) * factor.
template <typename T>
struct RowScale {
  T mean = 0, factor = 1;
  double deviation = 0;

  RowScale() = default;
  RowScale(const Convolution<T>& conv, long channel) {
    if (!conv.standardized) return;
    mean = conv.rows[2 * channel];
    deviation = conv.rows[2 * channel + 1];
    factor = T(1 / (deviation + conv.eps));
  }
};

template <typename T>
void write_row_statistics(const Convolution<T>& conv) {
  if (!conv.standardized) return;
  const long n = conv.row_size();
  for (long channel = 0; channel < conv.out; channel++) {
    const T* row = conv.row(channel);
    const T mean = T(sum_of<T>(n, [=](long i) { return row[i]; }) / n);
    const double squares = sum_of<T>(n, [=](long i) { return (row[i] - mean) * (row[i] - mean); });
    conv.rows[2 * channel] = mean;
    conv.rows[2 * channel + 1] = T(std::sqrt(squares / (n - 1)));
  }
}

// Adds the gradient with respect to a row of the weight, given that with respect to the standardised row.
template <typename T>
void add_row_gradient(const Convolution<T>& conv, long channel, const T* grad) {
  const long n = conv.row_size();
  const T* row = conv.row(channel);
  T* target = conv.grad_weight + channel * n;
  if (!conv.standardized) {
    for (long i = 0; i < n; i++) target[i] += grad[i];
    return;
  }
  const RowScale<T> scale(conv, channel);
  const double along = sum_of<T>(n, [=](long i) { return grad[i] * (row[i] - scale.mean); });
  const T constant = T(sum_of<T>(n, [=](long i) { return grad[i]; }) / n) * scale.factor;
  // the standard deviation d depends on the row, too: d' = (w - mean) / (d (n - 1))
  const double factor = double(scale.factor) * scale.factor;
  const T slope = scale.deviation > 0 ? T(along * factor / (scale.deviation * (n - 1))) : T(0);
#pragma omp simd
  for (long i = 0; i < n; i++) target[i] += grad[i] * scale.factor - constant - (row[i] - scale.mean) * slope;
}

// --- lanes -----------------------------------------------------------------------------------------

// Double serves proofs: it has fewer kinds of tiles, so that it compiles soon.
template <typename T>
constexpr bool HAS_MANY_TILES = sizeof(T) == sizeof(float);

// Half a vector, for channels that would leave the other half empty; on machines that have one.
template <typename T>
constexpr bool HAS_HALF = HAS_MANY_TILES<T> && VECTOR_BYTES >= 32;
template <typename T>
struct HalfVector {
  typedef T type __attribute__((vector_size(VECTOR_BYTES / 2)));
};
template <typename T>
using Half = typename HalfVector<T>::type;

// The channels that one pass of a convolution computes: `lanes` of them from `first` on, of which `count` are
// there.
struct Run {
  long first, lanes, count;
};

// Calls f(run) for the runs that make up channels: pairs of vectors, then the rest in as few halves as hold
// it.
template <typename T, class F>
TINYTL_INLINE void for_runs(long channels, F&& f) {
  constexpr long L = LANES<T>, half = HAS_HALF<T> ? L / 2 : L;
  for (long first = 0; first < channels;) {
    const long rest = channels - first;
    long lanes = L;
    if (HAS_MANY_TILES<T> && rest > L + (half < L ? half : 0)) lanes = 2 * L;
    if (rest <= half) lanes = half;
    f(Run{first, lanes, smaller_of(lanes, rest)});
    first += lanes;
  }
}

// Calls f<V, N>() for the vectors, N of type V, that make up a run.
template <typename T, class F>
TINYTL_INLINE void with_vectors(const Run& run, F&& f) {
  if constexpr (HAS_MANY_TILES<T>)
    if (run.lanes == 2 * LANES<T>) return f.template operator()<Vector<T>, 2>();
  if constexpr (HAS_HALF<T>)
    if (run.lanes < LANES<T>) return f.template operator()<Half<T>, 1>();
  f.template operator()<Vector<T>, 1>();
}

template <typename V, typename T>
TINYTL_INLINE V load_as(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <typename V, typename T>
TINYTL_INLINE void store_as(T* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// --- packing ---------------------------------------------------------------------------------------

// Rows, at most LANES<T> of them and `step` apart, to columns: vectors of an element of every row. Rows from
// `count` on are zeros, and so are elements from `length` on.
template <typename T>
TINYTL_INLINE void load_columns(const T* rows, long step, long count, long length,
                                Vector<T> (&tile)[LANES<T>]) {
  TINYTL_UNROLL for (long j = 0; j < LANES<T>; j++)
    tile[j] = j < count ? load_part(rows + j * step, length) : Vector<T>{};
  transpose<T>(tile);
}

// Rows, `count` of them and `step` apart, become columns: (length, lanes).
template <typename T>
void pack_rows(const T* rows, long step, long count, long length, long lanes, T* out) {
  constexpr long L = LANES<T>;
  for (long block = 0; block < lanes; block += L)
    for (long k = 0; k < length; k += L) {
      Vector<T> tile[L];
      load_columns(rows + block * step + k, step, count - block, length - k, tile);
      TINYTL_UNROLL for (long j = 0; j < L; j++)
        if (k + j < length) store_part(out + (k + j) * lanes + block, tile[j], lanes - block);
    }
}

// Packs the weights of the output channels from `first` on: (row size, lanes).
template <typename T>
void pack_for_forward(const Convolution<T>& conv, long first, long count, long lanes, T* out) {
  constexpr long L = LANES<T>;
  const long size = conv.row_size();
  for (long block = 0; block < lanes; block += L) {
    T means[L] = {}, factors[L] = {};
    for (long j = 0; j < L && block + j < count; j++) {
      const RowScale<T> own(conv, first + block + j);
      means[j] = own.mean, factors[j] = own.factor;
    }
    const Vector<T> mean = load(means), factor = load(factors);
    for (long k = 0; k < size; k += L) {
      Vector<T> tile[L];
      load_columns(conv.row(first + block) + k, size, count - block, size - k, tile);
      TINYTL_UNROLL for (long j = 0; j < L; j++)
        if (k + j < size) store_part(out + (k + j) * lanes + block, (tile[j] - mean) * factor, lanes - block);
    }
  }
}

constexpr long MAX_GROUPED_KERNEL = 7;  // the largest of KERNELS in lite_residual.py

// A convolution backwards is, for the input pixels of each parity (row and column modulo the stride), a
// convolution of the gradient with the taps of that parity, from last to first. Packed weights hold one such
// kernel after the other, each as (out channels of the group, rows, columns, lanes).
struct Parity {
  long rows, columns;     // of its kernel
  long first_y, first_x;  // the first input pixel
  long top, left;         // where its kernel begins in the gradient
  long weights;           // where its kernel begins among the packed weights, in vectors of lanes

  template <typename T>
  Parity(const Convolution<T>& conv, long parity) {
    const long s = conv.stride, k = conv.kernel, a = parity / s, b = parity % s;
    const auto taps = [&](long phase) { return phase < k ? ceil_div(k - phase, s) : 0; };
    rows = taps(a), columns = taps(b);
    first_y = (a + conv.padding * (s - 1)) % s, first_x = (b + conv.padding * (s - 1)) % s;
    top = (first_y + conv.padding - a) / s - (rows - 1);
    left = (first_x + conv.padding - b) / s - (columns - 1);
    weights = 0;
    for (long before = 0; before < parity; before++)
      weights += conv.out_group() * taps(before / s) * taps(before % s);
  }
};

// Where the weight of a tap stands among those packed, in vectors of lanes: start + out channel * step.
struct TapPosition {
  long start, step;

  template <typename T>
  static TapPosition of(const Convolution<T>& conv, long tap) {
    const long s = conv.stride, y = tap / conv.kernel, x = tap % conv.kernel;
    const Parity parity(conv, y % s * s + x % s);
    const long at = (parity.rows - 1 - y / s) * parity.columns + parity.columns - 1 - x / s;
    return {parity.weights + at, parity.rows * parity.columns};
  }
};

// Packs the weights of a group for the way back, run after run of input channels, which are the lanes. The
// weight is read in its own order: its rows are too far apart for the processor to foresee a part of each.
template <typename T>
void pack_for_backward(const Convolution<T>& conv, long group, T* out) {
  constexpr long L = LANES<T>;
  const long taps = conv.taps(), size = conv.out_group() * taps;  // of an input channel
  TapPosition at[MAX_GROUPED_KERNEL * MAX_GROUPED_KERNEL];
  for (long t = 0; t < taps; t++) at[t] = TapPosition::of(conv, t);
  for (long o = 0; o < conv.out_group(); o++) {
    const long channel = group * conv.out_group() + o;
    const RowScale<T> scale(conv, channel);
    for_runs<T>(conv.in_group(), [&](const Run& run) {
      for (long block = 0; block < run.lanes; block += L) {
        const T* row = conv.row(channel) + (run.first + block) * taps;
        const long count = run.count - block, lanes = run.lanes - block;
        T* target = out + run.first * size + block;
        if (taps == 1) {
          const Vector<T> values = (load_part(row, count) - scale.mean) * scale.factor;
          store_part(target + o * run.lanes, values, lanes);
          continue;
        }
        for (long t = 0; t < taps; t += L) {
          Vector<T> tile[L];
          load_columns(row + t, taps, count, taps - t, tile);
          TINYTL_UNROLL for (long j = 0; j < L; j++) {
            if (t + j >= taps) continue;
            const long position = at[t + j].start + o * at[t + j].step;
            store_part(target + position * run.lanes, (tile[j] - scale.mean) * scale.factor, lanes);
          }
        }
      }
    });
  }
}

}  // namespace tinytl
