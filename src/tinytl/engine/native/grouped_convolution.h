// A grouped convolution on the small maps of one image, forwards and backwards.
//
// Maps stand as planes, (channels, rows, columns). A tile holds neighbouring pixels of a row for one run of
// output channels, which are the lanes of vectors; the input is read by broadcast, at addresses that differ
// by constants. So planes have zeros at the left and right of their rows, and rows above and below the map
// are left out.
#pragma once

#include "trained_weight.h"

namespace tinytl {

// Where a convolution finds its input and output; sizes in elements.
struct Maps {
  long plane, pitch;  // between input channels; between input rows
  long height;        // input rows
  long out_rows, out_columns;
};

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

}  // namespace tinytl
