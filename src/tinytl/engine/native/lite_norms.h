// A norm and the activation after it over planes, (channel, pixel), of one image: the activation is a clamp.
#pragma once

#include <tuple>

#include "plane_norms.h"

namespace tinytl {

// A channel is normalised to x * factor + offset.
template <typename T>
struct PlaneAffine {
  T mean, rstd, factor, offset;

  PlaneAffine(const Norm<T>& norm, long image, long channel) {
    std::tie(mean, rstd) = plane_normalisation(norm, image, channel);
    factor = norm.scale[channel] * rstd;
    offset = norm.shift[channel] - mean * factor;
  }
};

template <typename T>
void activate_planes(const Norm<T>& norm, long image, long area, const T* x, T* out) {
  const T low = T(norm.act.low), high = T(norm.act.high);
  for (long channel = 0; channel < norm.channels; channel++) {
    const PlaneAffine<T> own(norm, image, channel);
    const T* plane = x + channel * area;
    T* target = out + channel * area;
#pragma omp simd
    for (long i = 0; i < area; i++) {
      const T z = plane[i] * own.factor + own.offset;
      target[i] = z < low ? low : (z > high ? high : z);
    }
  }
}

// Turns g, the gradient with respect to the activation's output, into that with respect to the norm's input
// x, in place, and writes the image's gradients with respect to scale and shift.
//
// With h = g * scale where the activation lets g pass, it is
//   rstd * (h - mean(h) - normed * mean(h * normed)), means over a group.
template <typename T>
void norm_act_planes_backward(const Norm<T>& norm, long image, long area, const T* x, T* g) {
  const T low = T(norm.act.low), high = T(norm.act.high);
  T* grad_scale = norm.grad_scale + image * norm.grad_step;
  T* grad_shift = norm.grad_shift + image * norm.grad_step;
  const long per_group = norm.stored() ? 1 : norm.per_group;
  const double per_value = norm.stored() ? 0 : 1.0 / (per_group * area);  // stored statistics are constants
  for (long first = 0; first < norm.channels; first += per_group) {
    double mean_h = 0, mean_h_normed = 0;
    for (long c = first; c < first + per_group; c++) {
      const PlaneAffine<T> own(norm, image, c);
      const T* plane = x + c * area;
      T* grad = g + c * area;
#pragma omp simd
      for (long i = 0; i < area; i++) {
        const T z = plane[i] * own.factor + own.offset;
        grad[i] = z > low && z < high ? grad[i] : T(0);
      }
      const double shift = sum_of<T>(area, [=](long i) { return grad[i]; });
      const double centred = sum_of<T>(area, [=](long i) { return grad[i] * (plane[i] - own.mean); });
      const double scale = centred * own.rstd;
      grad_shift[c] = T(shift);
      grad_scale[c] = T(scale);
      mean_h += norm.scale[c] * shift * per_value;
      mean_h_normed += norm.scale[c] * scale * per_value;
    }
    for (long c = first; c < first + per_group; c++) {
      const PlaneAffine<T> own(norm, image, c);
      const T* plane = x + c * area;
      T* grad = g + c * area;
      const T constant = T(mean_h) * own.rstd, slope = T(mean_h_normed) * own.rstd * own.rstd;
#pragma omp simd
      for (long i = 0; i < area; i++)
        grad[i] = grad[i] * own.factor - constant - (plane[i] - own.mean) * slope;
    }
  }
}

}  // namespace tinytl
