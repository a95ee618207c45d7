// The lite residual: average pooling, grouped convolution, norm, ReLU, 1x1 convolution, norm, upsampling,
// added to the block's output; in one call a direction, an image at a time.
//
// Kept for the backward pass are the outputs of the two convolutions and the norms' statistics. Backwards,
// each image first goes through alone; then the gradients with respect to the weights are summed, each part
// of them over the images in order, so that they do not depend on the number of threads.

#include "lite_norms.h"
#include "resize.h"
#include "threads.h"
#include "weight_gradient.h"

namespace tinytl {

// The fields are set in Python, which computes the sizes of the buffers.
template <typename T>
struct LiteResidual {
  Convolution<T> conv[2];
  Norm<T> norm[2];
  long images, threads;
  long height, width;  // of the block's input
  long pooling;        // factor
  // the pooled map, whose rows have the zeros of the grouped convolution at both ends
  long pooled_height, pooled_width, pooled_pitch, pooled_plane;
  long rows, columns;  // of the maps between the convolutions
  // the gradient between them with zeros around its rows: `margin` at the left
  long margin, grad_pitch, grad_plane;
  long out_height, out_width;  // of the block's output
  long bilinear;
  // elements of the buffers; all those of an image (backwards), of a thread
  long pooled_size, across_size, weights_size, grad_size, packed_grad_size, sums_size, natural_size;
  long image_size, thread_size;

  long area() const { return rows * columns; }
  long in_size() const { return conv[0].in * height * width; }
  long middle_size() const { return conv[0].out * area(); }
  long last_size() const { return conv[1].out * area(); }
  long out_size() const { return conv[1].out * out_height * out_width; }
  Maps first_maps() const { return {pooled_plane, pooled_pitch, pooled_height, rows, columns}; }
  Maps second_maps() const { return {area(), area(), 1, 1, area()}; }  // a 1x1 convolution knows no rows
};

// x (in, height, width) -> out (in, pooled_plane), rows with zeros at both ends.
template <typename T>
void pool(const LiteResidual<T>& l, const T* x, T* out) {
  std::memset(out, 0, l.pooled_size * sizeof(T));
  for (long c = 0; c < l.conv[0].in; c++)
    for (long y = 0; y < l.pooled_height; y++)
      pool_row(x + (c * l.height + y * l.pooling) * l.width, l.width, l.pooling, l.pooled_width,
               out + c * l.pooled_plane + y * l.pooled_pitch + l.conv[0].padding);
}

template <typename T>
void add_pooled(const LiteResidual<T>& l, const T* grad, T* grad_x) {
  for (long c = 0; c < l.conv[0].in; c++)
    for (long y = 0; y < l.pooled_height; y++)
      add_pooled_row(grad + (c * l.pooled_height + y) * l.pooled_width, l.width, l.pooling, l.pooled_width,
                     grad_x + (c * l.height + y * l.pooling) * l.width);
}

// middle, last: the outputs of the two convolutions, kept.
template <typename T>
void forward_image(const LiteResidual<T>& l, const Upsampling<T>& upsampling, long image, const T* x,
                   T* middle, T* last, T* out, T* buffer) {
  T* pooled = take(buffer, l.pooled_size);
  T* active = take(buffer, l.middle_size());
  T* across = take(buffer, l.across_size);
  T* weights = take(buffer, l.weights_size);
  pool(l, x, pooled);
  convolve(l.conv[0], l.first_maps(), pooled, middle, weights);
  if (!l.norm[0].stored()) plane_statistics(l.norm[0], image, l.area(), middle);
  activate_planes(l.norm[0], image, l.area(), middle, active);
  convolve(l.conv[1], l.second_maps(), active, last, weights);
  if (!l.norm[1].stored()) plane_statistics(l.norm[1], image, l.area(), last);
  for (long c = 0; c < l.conv[1].out; c += PLANES) {
    const auto affine = [&](long plane) {
      const PlaneAffine<T> own(l.norm[1], image, c + plane);
      return std::pair(own.factor, own.offset);
    };
    upsampling.add(last + c * l.area(), smaller_of(PLANES, l.conv[1].out - c), affine, across,
                   out + c * l.out_height * l.out_width);
  }
}

// What the backward pass of an image leaves for the gradients with respect to the weights.
template <typename T>
struct ImageBuffers {
  T *pooled, *active;          // inputs of the two convolutions
  T *grad_middle, *grad_last;  // gradients with respect to their outputs

  ImageBuffers(const LiteResidual<T>& l, T* buffer)
      : pooled(take(buffer, l.pooled_size)), active(take(buffer, l.middle_size())),
        grad_middle(take(buffer, l.middle_size())), grad_last(take(buffer, l.last_size())) {}
};

template <typename T>
void backward_image(const LiteResidual<T>& l, const Upsampling<T>& upsampling, long image, const T* x,
                    const T* grad, const T* middle, const T* last, T* grad_x, const ImageBuffers<T>& own,
                    T* buffer) {
  T* across = take(buffer, l.across_size);
  T* weights = take(buffer, l.weights_size);
  T* padded = take(buffer, l.grad_size);
  T* grad_pooled = take(buffer, l.conv[0].in * l.pooled_height * l.pooled_width);
  for (long c = 0; c < l.conv[1].out; c += PLANES)
    upsampling.backward(grad + c * l.out_height * l.out_width, smaller_of(PLANES, l.conv[1].out - c), across,
                        own.grad_last + c * l.area());
  norm_act_planes_backward(l.norm[1], image, l.area(), last, own.grad_last);
  activate_planes(l.norm[0], image, l.area(), middle, own.active);
  convolve_backward(l.conv[1], l.second_maps(), 0, own.grad_last, 1, l.area(), own.grad_middle, weights);
  norm_act_planes_backward(l.norm[0], image, l.area(), middle, own.grad_middle);
  pool(l, x, own.pooled);
  if (!grad_x) return;
  std::memset(padded, 0, l.grad_size * sizeof(T));
  for (long c = 0; c < l.conv[0].out; c++)
    for (long y = 0; y < l.rows; y++)
      std::memcpy(padded + c * l.grad_plane + y * l.grad_pitch + l.margin,
                  own.grad_middle + (c * l.rows + y) * l.columns, l.columns * sizeof(T));
  const Maps maps = {l.grad_plane, l.grad_pitch, l.rows, l.rows, l.columns};
  convolve_backward(l.conv[0], maps, l.margin, padded, l.pooled_height, l.pooled_width, grad_pooled, weights);
  add_pooled(l, grad_pooled, grad_x);
}

// x (images, in, height, width); out (images, out, out_height, out_width), added to; middle and last: see
// forward_image. The scratch holds the tables of the upsampling, then the buffers of each thread.
template <typename T>
void forward(const LiteResidual<T>& l, const T* x, T* middle, T* last, T* out, T* scratch) {
  if (l.images == 0) return;
  const Upsampling<T> upsampling(l.rows, l.columns, l.out_height, l.out_width, l.bilinear, scratch);
  write_row_statistics(l.conv[0]);
  write_row_statistics(l.conv[1]);
  for_each_image(l.images, l.threads, [&](long image, long thread) {
    forward_image(l, upsampling, image, x + image * l.in_size(), middle + image * l.middle_size(),
                  last + image * l.last_size(), out + image * l.out_size(), scratch + thread * l.thread_size);
  });
}

// grad is the gradient with respect to the output; grad_x, that with respect to x, is added to, or null.
// Gradients with respect to the weights are added to. Those with respect to scales and shifts are written to
// the norms' rows, (images, ...), and their sums to grad_affine. The scratch holds the tables of the
// upsampling, the buffers of each image, those of each thread.
template <typename T>
void backward(const LiteResidual<T>& l, const T* x, const T* grad, const T* middle, const T* last, T* grad_x,
              T* grad_affine, T* scratch) {
  if (l.images == 0) return;
  const Upsampling<T> upsampling(l.rows, l.columns, l.out_height, l.out_width, l.bilinear, scratch);
  T* of_threads = scratch + l.images * l.image_size;
  const auto buffers = [&](long image) { return ImageBuffers<T>(l, scratch + image * l.image_size); };
  for_each_image(l.images, l.threads, [&](long image, long thread) {
    backward_image(l, upsampling, image, x + image * l.in_size(), grad + image * l.out_size(),
                   middle + image * l.middle_size(), last + image * l.last_size(),
                   grad_x ? grad_x + image * l.in_size() : nullptr, buffers(image),
                   of_threads + thread * l.thread_size);
  });
  sum_images(l.norm[0].grad_scale, l.images, l.norm[0].grad_step, grad_affine);
  const long first = count_parts(l.conv[0]), second = count_parts(l.conv[1]);
  for_each_image(first + second, l.threads, [&](long number, long thread) {
    T* buffer = of_threads + thread * l.thread_size;
    const WeightBuffers<T> own = {take(buffer, l.packed_grad_size), take(buffer, l.sums_size),
                                  take(buffer, l.natural_size)};
    const auto pooled = [&](long image) { return buffers(image).pooled; };
    const auto active = [&](long image) { return buffers(image).active; };
    const auto grad_middle = [&](long image) { return buffers(image).grad_middle; };
    const auto grad_last = [&](long image) { return buffers(image).grad_last; };
    if (number < first) {
      const Part part = part_at(l.conv[0], number);
      add_weight_part(l.conv[0], l.first_maps(), part, l.images, pooled, grad_middle, own);
    } else {
      const Part part = part_at(l.conv[1], number - first);
      add_weight_part(l.conv[1], l.second_maps(), part, l.images, active, grad_last, own);
    }
  });
}

}  // namespace tinytl

#define FOR_TYPE(T, suffix)                                                                                  \
  extern "C" void lite_residual_forward_##suffix(const tinytl::LiteResidual<T>* lite, const T* x, T* middle, \
                                                 T* last, T* out, T* scratch) {                              \
    tinytl::forward(*lite, x, middle, last, out, scratch);                                                   \
  }                                                                                                          \
  extern "C" void lite_residual_backward_##suffix(const tinytl::LiteResidual<T>* lite, const T* x,           \
                                                  const T* grad, const T* middle, const T* last, T* grad_x,  \
                                                  T* grad_affine, T* scratch) {                              \
    tinytl::backward(*lite, x, grad, middle, last, grad_x, grad_affine, scratch);                            \
  }

#if defined(TINYTL_FLOAT32)
FOR_TYPE(float, float32)
#else
FOR_TYPE(double, float64)
#endif
