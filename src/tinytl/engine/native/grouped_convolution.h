// A grouped convolution whose weight trains, with weight standardisation, on the small maps of one image.
//
// Maps stand as planes, (channels, rows, columns). A tile holds neighbouring pixels of a row for one run of
// output channels, which are the lanes of vectors; the input is read by broadcast, at addresses that differ
// by constants. So planes have zeros at the left and right of their rows, and rows above and below the map
// are left out. Weights are packed for the lanes when they are used, and standardised on the way.
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

// Where a convolution finds its input and output; sizes in elements.
struct Maps {
  long plane, pitch;  // between input channels; between input rows
  long height;        // input rows
  long out_rows, out_columns;
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

// Calls f(run) for the runs that make up channels: pairs of vectors, then the rest in as few halves as hold it.
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
TINYTL_INLINE void load_columns(const T* rows, long step, long count, long length, Vector<T> (&tile)[LANES<T>]) {
  TINYTL_UNROLL for (long j = 0; j < LANES<T>; j++)
    tile[j] = j < count ? load_part(rows + j * step, length) : Vector<T>{};
  transpose<T>(tile);
}

// Rows, `count` of them and `step` apart, become columns: (length, lanes).
template <typename T>
__attribute__((noinline)) void pack_rows(const T* rows, long step, long count, long length, long lanes, T* out) {
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

constexpr long MAX_KERNEL = 7;

// A convolution backwards is, for the input pixels of each parity (row and column modulo the stride), a
// convolution of the gradient with the taps of that parity, from last to first. Packed weights hold one such
// kernel after the other, each as (out channels of the group, rows, columns, lanes).
struct Parity {
  long rows, columns;      // of its kernel
  long first_y, first_x;   // the first input pixel
  long top, left;          // where its kernel begins in the gradient
  long weights;            // where its kernel begins among the packed weights, in vectors of lanes

  template <typename T>
  Parity(const Convolution<T>& conv, long parity) {
    const long s = conv.stride, k = conv.kernel, a = parity / s, b = parity % s;
    const auto taps = [&](long phase) { return phase < k ? ceil_div(k - phase, s) : 0; };
    rows = taps(a), columns = taps(b);
    first_y = (a + conv.padding * (s - 1)) % s, first_x = (b + conv.padding * (s - 1)) % s;
    top = (first_y + conv.padding - a) / s - (rows - 1), left = (first_x + conv.padding - b) / s - (columns - 1);
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
  TapPosition at[MAX_KERNEL * MAX_KERNEL];
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

// --- forwards and backwards ------------------------------------------------------------------------

// A sum over input channels, rows and columns of a kernel, for the output pixels of some channels.
struct Correlation {
  Maps maps;
  long channels, rows, columns;  // of the kernel
  long column_step;              // between the inputs of neighbouring columns of the kernel
  long top;                      // the input row under the kernel's first row, for the first output row
  long out_plane, out_pitch, out_step;  // between output channels, rows and columns
};

// Pixels of a tile, at most: with two vectors of channels and the operands they fill the registers, of which
// there are 32 or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int FLOAT_PIXELS = 14;
#else
constexpr int FLOAT_PIXELS = 6;
#endif
template <typename T>
constexpr int PIXELS = HAS_MANY_TILES<T> ? FLOAT_PIXELS : 3;

// Calls f<P>(start) for tiles of P pixels that make up n. Rows are short, so that float has many sizes.
template <typename T, class F>
TINYTL_INLINE void for_row_tiles(long n, F&& f) {
  long p = 0;
  for (; p + PIXELS<T> <= n; p += PIXELS<T>) f.template operator()<PIXELS<T>>(p);
  if constexpr (PIXELS<T> > 8)
    if (p + 7 <= n) f.template operator()<7>(p), p += 7;
  if constexpr (HAS_MANY_TILES<T>) {
    if (p + 4 <= n) f.template operator()<4>(p), p += 4;
    if (p + 3 <= n) f.template operator()<3>(p), p += 3;
    if (p + 2 <= n) f.template operator()<2>(p), p += 2;
  }
  for (; p < n; p++) f.template operator()<1>(p);
}

// Writes sums, (pixels, lanes), to the first `channels` planes. Not inlined: tiles of every size use it.
template <typename T>
__attribute__((noinline)) void store_sums(const T* sums, long pixels, long lanes, long channels, T* out,
                                          long plane, long step) {
  constexpr long L = LANES<T>;
  if (step > 1) {
    for (long c = 0; c < channels && c < lanes; c++)
      for (long p = 0; p < pixels; p++) out[c * plane + p * step] = sums[p * lanes + c];
    return;
  }
  for (long block = 0; block < lanes; block += L)
    for (long start = 0; start < pixels; start += L) {
      Vector<T> tile[L];
      TINYTL_UNROLL for (long i = 0; i < L; i++)
        tile[i] = start + i < pixels ? load(sums + (start + i) * lanes + block) : Vector<T>{};
      transpose<T>(tile);
      TINYTL_UNROLL for (long c = 0; c < L; c++)
        if (c < lanes - block && block + c < channels)
          store_part(out + (block + c) * plane + start, tile[c], pixels - start);
    }
}

// x is the input under the kernel's first column for the first output column; w (channels, rows, columns,
// lanes); out (channels_out, ...).
template <int STRIDE, typename V, int N, typename T>
void correlate(const Correlation& c, const T* x, const T* w, long channels_out, T* out) {
  constexpr long width = sizeof(V) / sizeof(T), lanes = N * width;
  for (long y = 0; y < c.maps.out_rows; y++) {
    const long top = c.top + y * STRIDE, first = top < 0 ? -top : 0;
    const long last = smaller_of(c.rows, c.maps.height - top);
    for_row_tiles<T>(c.maps.out_columns, [&]<int P>(long column) TINYTL_INLINE_LAMBDA {
      V tile[P][N];
      TINYTL_UNROLL for (int p = 0; p < P; p++) TINYTL_UNROLL for (int n = 0; n < N; n++) tile[p][n] = V{};
      for (long k = 0; k < c.channels; k++) {
        const T* line = x + k * c.maps.plane + (top + first) * c.maps.pitch + column * STRIDE;
        const T* weights = w + (k * c.rows + first) * c.columns * lanes;
        for (long row = first; row < last; row++, line += c.maps.pitch) {
          const T* input = line;
          for (long tap = 0; tap < c.columns; tap++, weights += lanes, input += c.column_step) {
            V own[N];
            TINYTL_UNROLL for (int n = 0; n < N; n++) own[n] = load_as<V>(weights + n * width);
            TINYTL_UNROLL for (int p = 0; p < P; p++) {
              const V value = input[p * STRIDE] - V{};
              TINYTL_UNROLL for (int n = 0; n < N; n++) tile[p][n] += own[n] * value;
            }
          }
        }
      }
      T sums[P * lanes + LANES<T>];  // whole vectors are read of it
      TINYTL_UNROLL for (int p = 0; p < P; p++) TINYTL_UNROLL for (int n = 0; n < N; n++)
          store_as(sums + p * lanes + n * width, tile[p][n]);
      store_sums(sums, P, lanes, channels_out, out + y * c.out_pitch + column * c.out_step, c.out_plane,
                 c.out_step);
    });
  }
}

// x (in, rows, columns), its rows with `padding` zeros at both ends -> y (out, out_rows * out_columns).
// Channels of a 1x1 convolution take the part of the kernel's columns.
template <typename T>
void convolve(const Convolution<T>& conv, const Maps& maps, const T* x, T* y, T* weights) {
  const long in = conv.in_group(), out = conv.out_group(), area = maps.out_rows * maps.out_columns;
  const bool pointwise = conv.kernel == 1;
  const Correlation c = {maps,
                         pointwise ? 1 : in,
                         conv.kernel,
                         pointwise ? in : conv.kernel,
                         pointwise ? maps.plane : 1,
                         -conv.padding,
                         area,
                         maps.out_columns,
                         1};
  for (long group = 0; group < conv.groups; group++)
    for_runs<T>(out, [&](const Run& run) {
      const long first = group * out + run.first;
      const T* source = x + group * in * maps.plane;
      pack_for_forward(conv, first, run.count, run.lanes, weights);
      with_vectors<T>(run, [&]<typename V, int N>() {
        if (conv.stride == 1)
          correlate<1, V, N>(c, source, weights, run.count, y + first * area);
        else
          correlate<2, V, N>(c, source, weights, run.count, y + first * area);
      });
    });
}

// The gradient with respect to the input, written: grad (out, rows, columns), its rows with `margin` zeros at
// the left and as many as are needed at the right -> grad_x (in, height, width).
template <typename T>
void convolve_backward(const Convolution<T>& conv, const Maps& maps, long margin, const T* grad, long height,
                       long width, T* grad_x, T* weights) {
  const long in = conv.in_group(), out = conv.out_group(), s = conv.stride;
  const bool pointwise = conv.kernel == 1;
  for (long group = 0; group < conv.groups; group++) {
    pack_for_backward(conv, group, weights);
    for_runs<T>(in, [&](const Run& run) {
      const T* own = weights + run.first * out * conv.taps();
      for (long number = 0; number < s * s; number++) {
        const Parity parity(conv, number);
        if (parity.first_y >= height || parity.first_x >= width) continue;
        Correlation c = {maps, out, parity.rows, parity.columns, 1, parity.top, height * width, s * width, s};
        c.maps.out_rows = ceil_div(height - parity.first_y, s);
        c.maps.out_columns = ceil_div(width - parity.first_x, s);
        if (pointwise && parity.rows && parity.columns)
          c.channels = 1, c.columns = out, c.column_step = maps.plane;
        const T* source = grad + group * out * maps.plane + margin + parity.left;
        const long channel = group * in + run.first;
        T* target = grad_x + channel * height * width + parity.first_y * width + parity.first_x;
        with_vectors<T>(run, [&]<typename V, int N>() {
          correlate<1, V, N>(c, source, own + parity.weights * run.lanes, run.count, target);
        });
      }
    });
  }
}

// --- gradient with respect to the weight -----------------------------------------------------------

// How many input channels a tile of weight gradients takes: with the kernel's columns and N vectors they
// fill the registers, as 2 * PIXELS vectors do, and each needs a pointer.
template <typename T>
constexpr int channels_of_tile(int columns, int vectors) {
  const int most = 2 * PIXELS<T> / (columns * vectors);
  return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// Adds to sums (in, kernel, kernel, lanes) for row `ky` of the kernel and C input channels from x on; grad
// (out_rows, out_columns, lanes).
template <int K, int C, typename V, int N, typename T>
TINYTL_INLINE void add_weight_tile(const Convolution<T>& conv, const Maps& maps, long ky, const T* x,
                                   const T* grad, T* sums) {
  constexpr long width = sizeof(V) / sizeof(T), lanes = N * width;
  V tile[C * K][N];
  TINYTL_UNROLL for (int i = 0; i < C * K; i++) TINYTL_UNROLL for (int n = 0; n < N; n++) tile[i][n] = V{};
  for (long y = 0; y < maps.out_rows; y++) {
    const long row = y * conv.stride + ky - conv.padding;
    if (row < 0 || row >= maps.height) continue;
    const T *input = x + row * maps.pitch, *own_grad = grad + y * maps.out_columns * lanes;
    for (long column = 0; column < maps.out_columns; column++, input += conv.stride, own_grad += lanes) {
      V own[N];
      TINYTL_UNROLL for (int n = 0; n < N; n++) own[n] = load_as<V>(own_grad + n * width);
      TINYTL_UNROLL for (int c = 0; c < C; c++) TINYTL_UNROLL for (int k = 0; k < K; k++) {
        const V value = input[c * maps.plane + k] - V{};
        TINYTL_UNROLL for (int n = 0; n < N; n++) tile[c * K + k][n] += own[n] * value;
      }
    }
  }
  TINYTL_UNROLL for (int c = 0; c < C; c++) TINYTL_UNROLL for (int k = 0; k < K; k++)
      TINYTL_UNROLL for (int n = 0; n < N; n++) {
    T* target = sums + (c * K * K + k) * lanes + n * width;
    store_as(target, load_as<V>(target) + tile[c * K + k][n]);
  }
}

template <int K, typename V, int N, typename T>
void add_weight_tiles(const Convolution<T>& conv, const Maps& maps, const T* x, const T* grad, T* sums) {
  constexpr long lanes = N * sizeof(V) / sizeof(T);
  constexpr int C = channels_of_tile<T>(K, N);
  for (long ky = 0; ky < K; ky++) {
    const auto target = [&](long channel) { return sums + (channel * K + ky) * K * lanes; };
    long i = 0;
    for (; i + C <= conv.in_group(); i += C)
      add_weight_tile<K, C, V, N>(conv, maps, ky, x + i * maps.plane, grad, target(i));
    for (; i < conv.in_group(); i++)
      add_weight_tile<K, 1, V, N>(conv, maps, ky, x + i * maps.plane, grad, target(i));
  }
}

// A part of the gradient with respect to the weight that is computed alone: some channels of a group.
struct Part {
  long group;
  Run run;
};

// Calls f(part, number) for all parts; returns how many there are.
template <typename T, class F>
long for_parts(const Convolution<T>& conv, F&& f) {
  long count = 0;
  for (long group = 0; group < conv.groups; group++)
    for_runs<T>(conv.out_group(), [&](const Run& run) { f(Part{group, run}, count++); });
  return count;
}

template <typename T>
long count_parts(const Convolution<T>& conv) {
  return conv.grad_weight ? for_parts(conv, [](const Part&, long) {}) : 0;
}

template <typename T>
Part part_at(const Convolution<T>& conv, long number) {
  Part found = {};
  for_parts(conv, [&](const Part& part, long at) {
    if (at == number) found = part;
  });
  return found;
}

// Buffers for one part; native_lite_residual.py tells how much they take.
template <typename T>
struct WeightBuffers {
  T* grad;     // (out_rows * out_columns, lanes)
  T* sums;     // (row size, lanes)
  T* natural;  // (vector, row size rounded up to a vector)
};

// Adds one part of the gradient with respect to the weight, over the images in order. x(image) is the input
// as in `convolve`, grad(image) the gradient with respect to the output, (out, out_rows * out_columns).
template <typename T, class X, class G>
void add_weight_part(const Convolution<T>& conv, const Maps& maps, const Part& part, long images, X&& x, G&& grad,
                     const WeightBuffers<T>& buffers) {
  constexpr long L = LANES<T>;
  const Run& run = part.run;
  const long group = part.group;
  const long size = conv.row_size(), area = maps.out_rows * maps.out_columns;
  const long first = group * conv.out_group() + run.first, count = run.count;
  std::memset(buffers.sums, 0, size * run.lanes * sizeof(T));
  for (long image = 0; image < images; image++) {
    const T* input = x(image) + group * conv.in_group() * maps.plane;
    pack_rows(grad(image) + first * area, area, count, area, run.lanes, buffers.grad);
    with_vectors<T>(run, [&]<typename V, int N>() {
      if (conv.kernel == 1) add_weight_tiles<1, V, N>(conv, maps, input, buffers.grad, buffers.sums);
      if (conv.kernel == 3) add_weight_tiles<3, V, N>(conv, maps, input, buffers.grad, buffers.sums);
      if (conv.kernel == 5) add_weight_tiles<5, V, N>(conv, maps, input, buffers.grad, buffers.sums);
      if (conv.kernel == 7) add_weight_tiles<7, V, N>(conv, maps, input, buffers.grad, buffers.sums);
    });
  }
  const long step = ceil_div(size, L) * L;
  for (long block = 0; block < count; block += L) {
    for (long k = 0; k < size; k += L) {
      Vector<T> tile[L];
      TINYTL_UNROLL for (long j = 0; j < L; j++)
        tile[j] = k + j < size ? load_part(buffers.sums + (k + j) * run.lanes + block, run.lanes - block)
                               : Vector<T>{};
      transpose<T>(tile);
      TINYTL_UNROLL for (long j = 0; j < L; j++) store(buffers.natural + j * step + k, tile[j]);
    }
    for (long j = 0; j < smaller_of(L, count - block); j++)
      add_row_gradient(conv, first + block + j, buffers.natural + j * step);
  }
}

}  // namespace tinytl
