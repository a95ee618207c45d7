// The dense convolution at a network's beginning, from planes to packed maps.
#pragma once

#include "depthwise.h"
#include "pointwise.h"

namespace tinytl {

// Elements of the buffer of input rows.
inline long stem_columns(const Window& w) { return filter_columns(w); }

// Copies the input rows of output row `y`, with zeros around them: (channels * kernel, columns).
template <typename T>
void stem_rows(const Window& w, const T* x, long channels, long y, T* rows) {
  const long columns = stem_columns(w);
  for (long c = 0; c < channels; c++)
    for (long i = 0; i < w.kernel; i++, rows += columns) {
      const long in_y = y * w.stride - w.top + i;
      if (in_y < 0 || in_y >= w.height)
        std::memset(rows, 0, sizeof(T) * columns);
      else
        std::memcpy(rows + w.left, x + (c * w.height + in_y) * w.width, sizeof(T) * w.width);
    }
}

// y = packed maps of N vectors of the convolution, (N, out_area, lanes); `sums`, if given, sums them. `rows`
// is a buffer of the input rows; weights are (channels * kernel * kernel, N, lanes).
template <int N, long STRIDE, typename T>
void stem_strided(const Window& w, const T* x, long channels, const T* weights, T* rows, T* y, Sums<T>* sums) {
  constexpr long L = LANES<T>;
  const long columns = stem_columns(w), row_count = channels * w.kernel;
  std::memset(rows, 0, sizeof(T) * row_count * columns);
  Sums<T> own[N];
  for (long out_y = 0; out_y < w.out_height; out_y++) {
    stem_rows(w, x, channels, out_y, rows);
    for_tiles<T>(w.out_width, [&]<int P>(long start) TINYTL_INLINE_LAMBDA {
      Vector<T> tile[P][N];
      clear<T>(tile);
      for (long r = 0; r < row_count; r++)
        add_products<STRIDE, T>(rows + r * columns + start * STRIDE, 1, w.kernel, weights + r * w.kernel * N * L,
                                tile);
      const long at = out_y * w.out_width + start;
      TINYTL_UNROLL for (int n = 0; n < N; n++) TINYTL_UNROLL for (int p = 0; p < P; p++)
        store(y + (n * w.out_area() + at + p) * L, tile[p][n]);
      if (!sums) return;
      TINYTL_UNROLL for (int n = 0; n < N; n++) {
        if (at == 0) own[n].first = tile[0][n];
        own[n].template add<P>(&tile[0][n], N);
      }
    });
  }
  if (sums)
    for (int n = 0; n < N; n++) sums[n] = own[n];
}

template <int N, typename T>
void stem(const Window& w, const T* x, long channels, const T* weights, T* rows, T* y, Sums<T>* sums) {
  if (w.stride == 1) return stem_strided<N, 1, T>(w, x, channels, weights, rows, y, sums);
  stem_strided<N, 2, T>(w, x, channels, weights, rows, y, sums);
}

// Adds one vector's part of the gradient with respect to x. Plain loops: images seldom need gradients.
template <typename T>
void stem_backward(const Window& w, const T* grad, long channels, const T* weights, T* grad_x) {
  constexpr long L = LANES<T>;
  for (long y = 0; y < w.out_height; y++)
    for (long x = 0; x < w.out_width; x++) {
      const Vector<T> g = load(grad + (y * w.out_width + x) * L);
      for (long k = 0; k < channels * w.kernel * w.kernel; k++) {
        const long in_y = y * w.stride - w.top + k / w.kernel % w.kernel;
        const long in_x = x * w.stride - w.left + k % w.kernel;
        if (in_y < 0 || in_y >= w.height || in_x < 0 || in_x >= w.width) continue;
        const Vector<T> product = g * load(weights + k * L);
        T sum = 0;
        for (long i = 0; i < L; i++) sum += product[i];
        grad_x[(k / (w.kernel * w.kernel) * w.height + in_y) * w.width + in_x] += sum;
      }
    }
}

}  // namespace tinytl
