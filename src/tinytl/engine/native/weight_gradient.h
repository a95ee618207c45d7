// The gradient with respect to the weight of a grouped convolution, summed over images and pixels. The lanes
// are output channels, and the input is read by broadcast.
#pragma once

#include "grouped_convolution.h"

namespace tinytl {

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

// Buffers for one part; lite_residual.py tells how much they take.
template <typename T>
struct WeightBuffers {
  T* grad;     // (out_rows * out_columns, lanes)
  T* sums;     // (row size, lanes)
  T* natural;  // (vector, row size rounded up to a vector)
};

// Adds the sums of a run, whose first output channel is `first`, in the weight's own order.
template <typename T>
void add_sums(const Convolution<T>& conv, long first, const Run& run, const WeightBuffers<T>& buffers) {
  constexpr long L = LANES<T>;
  const long size = conv.row_size(), step = ceil_div(size, L) * L;
  for (long block = 0; block < run.count; block += L) {
    for (long k = 0; k < size; k += L) {
      const T* sums = buffers.sums + k * run.lanes + block;
      Vector<T> tile[L];
      TINYTL_UNROLL for (long j = 0; j < L; j++)
        tile[j] = k + j < size ? load_part(sums + j * run.lanes, run.lanes - block) : Vector<T>{};
      transpose<T>(tile);
      TINYTL_UNROLL for (long j = 0; j < L; j++) store(buffers.natural + j * step + k, tile[j]);
    }
    for (long j = 0; j < smaller_of(L, run.count - block); j++)
      add_row_gradient(conv, first + block + j, buffers.natural + j * step);
  }
}

// Adds one part of the gradient with respect to the weight, over the images in order. x(image) is the input
// as in `convolve`, grad(image) the gradient with respect to the output, (out, out_rows * out_columns).
template <typename T, class X, class G>
void add_weight_part(const Convolution<T>& conv, const Maps& maps, const Part& part, long images, X&& x,
                     G&& grad, const WeightBuffers<T>& buffers) {
  const Run& run = part.run;
  const long group = part.group, first = group * conv.out_group() + run.first;
  const long size = conv.row_size(), area = maps.out_rows * maps.out_columns;
  std::memset(buffers.sums, 0, size * run.lanes * sizeof(T));
  for (long image = 0; image < images; image++) {
    const T* input = x(image) + group * conv.in_group() * maps.plane;
    pack_rows(grad(image) + first * area, area, run.count, area, run.lanes, buffers.grad);
    with_vectors<T>(run, [&]<typename V, int N>() {
      if (conv.kernel == 1) add_weight_tiles<1, V, N>(conv, maps, input, buffers.grad, buffers.sums);
      if (conv.kernel == 3) add_weight_tiles<3, V, N>(conv, maps, input, buffers.grad, buffers.sums);
      if (conv.kernel == 5) add_weight_tiles<5, V, N>(conv, maps, input, buffers.grad, buffers.sums);
      if (conv.kernel == 7) add_weight_tiles<7, V, N>(conv, maps, input, buffers.grad, buffers.sums);
    });
  }
  add_sums(conv, first, run, buffers);
}

}  // namespace tinytl
