// Norms over planes, (channel, pixel), of one image: the norm after the projection, which no activation
// follows.
#pragma once

#include "norms.h"

namespace tinytl {

constexpr long CHUNK = 1024;  // elements summed in T; the chunks' sums are added in double

// The sum of value(i) for i below n.
template <typename T, class F>
TINYTL_INLINE double sum_of(long n, F&& value) {
  double total = 0;
  for (long start = 0; start < n; start += CHUNK) {
    const long stop = smaller_of(start + CHUNK, n);
    T part = 0;
#pragma omp simd reduction(+ : part)
    for (long i = start; i < stop; i++) part += value(i);
    total += part;
  }
  return total;
}

// Writes mean and 1 / standard deviation of every group, for each channel.
template <typename T>
void plane_statistics(const Norm<T>& norm, long image, long area, const T* x) {
  const long count = norm.per_group * area;
  for (long channel = 0; channel < norm.channels; channel += norm.per_group) {
    const T* group = x + channel * area;
    const T mean = T(sum_of<T>(count, [=](long i) { return group[i]; }) / count);
    const double squares = sum_of<T>(count, [=](long i) { return (group[i] - mean) * (group[i] - mean); });
    const T rstd = T(1 / std::sqrt(squares / count + norm.eps));
    for (long c = channel; c < channel + norm.per_group; c++) {
      norm.mean[image * norm.channels + c] = mean;
      norm.rstd[image * norm.channels + c] = rstd;
    }
  }
}

// Mean and 1 / standard deviation of a channel.
template <typename T>
std::pair<T, T> plane_normalisation(const Norm<T>& norm, long image, long channel) {
  if (norm.stored()) return {norm.mean[channel], T(1 / std::sqrt(norm.variance[channel] + norm.eps))};
  return {norm.mean[image * norm.channels + channel], norm.rstd[image * norm.channels + channel]};
}

template <typename T>
void normalize_planes(const Norm<T>& norm, long image, long area, const T* x, T* normed) {
  for (long channel = 0; channel < norm.channels; channel++) {
    const auto [mean, rstd] = plane_normalisation(norm, image, channel);
    const T* plane = x + channel * area;
    T *target = normed + channel * area, m = mean, r = rstd;
#pragma omp simd
    for (long i = 0; i < area; i++) target[i] = (plane[i] - m) * r;
  }
}

// out = normalised x * scale + shift, plus the shortcut `skip` if there is one; `normed` if it is kept. out
// may be x.
template <typename T>
void norm_planes(const Norm<T>& norm, long image, long area, const T* x, const T* skip, T* normed, T* out) {
  if (!norm.stored()) plane_statistics(norm, image, area, x);
  if (normed) normalize_planes(norm, image, area, x, normed);
  for (long channel = 0; channel < norm.channels; channel++) {
    const auto [mean, rstd] = plane_normalisation(norm, image, channel);
    const T factor = norm.scale[channel] * rstd, offset = norm.shift[channel] - mean * factor;
    const T *plane = x + channel * area, *shortcut = skip + channel * area;
    T* target = out + channel * area;
    if (skip) {
#pragma omp simd
      for (long i = 0; i < area; i++) target[i] = plane[i] * factor + offset + shortcut[i];
    } else {
#pragma omp simd
      for (long i = 0; i < area; i++) target[i] = plane[i] * factor + offset;
    }
  }
}

// grad_x = the gradient with respect to the norm's input, from that with respect to its output. Writes those
// with respect to scale and shift. Without `normed`, allowed with stored statistics, that of the scale is 0.
template <typename T>
void norm_planes_backward(const Norm<T>& norm, long image, long area, const T* grad, const T* normed, T* grad_x) {
  T *grad_scale = norm.grad_scale + image * norm.grad_step, *grad_shift = norm.grad_shift + image * norm.grad_step;
  const long per_group = norm.stored() ? 1 : norm.per_group;
  for (long channel = 0; channel < norm.channels; channel += per_group) {
    double mean_grad = 0, mean_along = 0;  // of grad * scale, and of it times the normalised input
    for (long c = channel; c < channel + per_group; c++) {
      const T *g = grad + c * area, *n = normed + c * area;
      const double shift = sum_of<T>(area, [=](long i) { return g[i]; });
      const double scale = normed ? sum_of<T>(area, [=](long i) { return g[i] * n[i]; }) : 0;
      grad_shift[c] = T(shift);
      grad_scale[c] = T(scale);
      mean_grad += norm.scale[c] * shift / (per_group * area);
      mean_along += norm.scale[c] * scale / (per_group * area);
    }
    for (long c = channel; c < channel + per_group; c++) {
      const T rstd = plane_normalisation(norm, image, c).second;
      const T factor = norm.scale[c] * rstd, along = T(mean_along) * rstd, constant = T(mean_grad) * rstd;
      const T *g = grad + c * area, *n = normed + c * area;
      T* target = grad_x + c * area;
      if (norm.stored()) {
#pragma omp simd
        for (long i = 0; i < area; i++) target[i] = g[i] * factor;
      } else {
#pragma omp simd
        for (long i = 0; i < area; i++) target[i] = g[i] * factor - n[i] * along - constant;
      }
    }
  }
}

}  // namespace tinytl
