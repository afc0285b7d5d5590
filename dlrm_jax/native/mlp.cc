// Multi-layer perceptrons as custom calls, see mlp.h.

#include "mlp.h"

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace {

using mlp::BFloat16;
using mlp::Float32;
using mlp::Layer;
using Array = ffi::Buffer<ffi::F32>;
using Words = ffi::Buffer<ffi::U32>;

std::vector<Layer> Layers(ffi::Span<const int64_t> widths, ffi::Span<const int64_t> relus) {
  std::vector<Layer> layers;
  for (size_t i = 0; i < relus.size(); ++i)
    layers.push_back({widths[i], widths[i + 1], relus[i] != 0});
  return layers;
}

auto OnPool(ffi::ThreadPool& pool) {
  return [&pool](int64_t tasks, const auto& work) { Parallel(pool, tasks, work); };
}

template <typename Type>
ffi::Error PackAs(ffi::ThreadPool& pool, const std::vector<Layer>& layers, ffi::RemainingArgs args,
                  bool both, uint32_t* packed) {
  std::vector<const float*> kernels;
  for (size_t i = 0; i < args.size(); ++i) kernels.push_back(args.get<Array>(i)->typed_data());
  mlp::Pack<Type>(layers, kernels, packed, both, OnPool(pool));
  return ffi::Error::Success();
}

ffi::Error Pack(ffi::ThreadPool pool, ffi::RemainingArgs kernels, ffi::Result<Words> packed,
                ffi::Span<const int64_t> widths, ffi::Span<const int64_t> relus, bool bfloat16,
                bool both) {
  const auto layers = Layers(widths, relus);
  return bfloat16 ? PackAs<BFloat16>(pool, layers, kernels, both, packed->typed_data())
                  : PackAs<Float32>(pool, layers, kernels, both, packed->typed_data());
}

template <typename Type, typename Number>
ffi::Error ForwardAs(ffi::ThreadPool& pool, const std::vector<Layer>& layers, ffi::AnyBuffer x,
                     const uint32_t* packed, ffi::RemainingArgs args, float* result,
                     ffi::RemainingRets rets, bool both) {
  std::vector<const float*> biases;
  for (size_t i = 0; i < args.size(); ++i) biases.push_back(args.get<Array>(i)->typed_data());
  std::vector<typename Type::Number*> hidden;
  for (size_t i = 0; i < rets.size(); ++i)
    hidden.push_back(static_cast<typename Type::Number*>((*rets.get<ffi::AnyBuffer>(i))->untyped_data()));
  mlp::Forward<Type>(layers, mlp::Packed<Type>(layers, packed, both), biases,
                     static_cast<const Number*>(x.untyped_data()), x.dimensions()[0], hidden,
                     result, Threads(pool), OnPool(pool));
  return ffi::Error::Success();
}

ffi::Error Forward(ffi::ThreadPool pool, ffi::AnyBuffer x, Words packed, ffi::RemainingArgs biases,
                   ffi::Result<Array> result, ffi::RemainingRets hidden,
                   ffi::Span<const int64_t> widths, ffi::Span<const int64_t> relus, bool bfloat16,
                   bool both) {
  const auto layers = Layers(widths, relus);
  auto call = [&](auto run) { return run(pool, layers, x, packed.typed_data(), biases, result->typed_data(), hidden, both); };
  if (!bfloat16) return call(ForwardAs<Float32, float>);
  if (x.element_type() == ffi::F32) return call(ForwardAs<BFloat16, float>);
  return call(ForwardAs<BFloat16, uint16_t>);
}

template <typename Type, typename Number>
ffi::Error BackwardAs(ffi::ThreadPool& pool, const std::vector<Layer>& layers, ffi::AnyBuffer x,
                      const uint32_t* packed, const float* result, const float* d_result,
                      ffi::RemainingArgs args, ffi::RemainingRets rets) {
  std::vector<const typename Type::Number*> hidden;
  for (size_t i = 0; i < args.size(); ++i)
    hidden.push_back(static_cast<const typename Type::Number*>(args.get<ffi::AnyBuffer>(i)->untyped_data()));
  const size_t count = layers.size();
  std::vector<float*> d_kernels, d_biases;
  for (size_t i = 0; i < count; ++i) {
    d_kernels.push_back((*rets.get<Array>(i))->typed_data());
    d_biases.push_back((*rets.get<Array>(count + i))->typed_data());
  }
  auto* const d_x = static_cast<Number*>(
      rets.size() > 2 * count ? (*rets.get<ffi::AnyBuffer>(2 * count))->untyped_data() : nullptr);
  mlp::Backward<Type>(layers, mlp::Packed<Type>(layers, packed, true),
                      static_cast<const Number*>(x.untyped_data()), hidden, result, d_result,
                      x.dimensions()[0], d_x, d_kernels, d_biases, Threads(pool), OnPool(pool));
  return ffi::Error::Success();
}

ffi::Error Backward(ffi::ThreadPool pool, ffi::AnyBuffer x, Words packed, Array result,
                    Array d_result, ffi::RemainingArgs hidden, ffi::RemainingRets rets,
                    ffi::Span<const int64_t> widths, ffi::Span<const int64_t> relus,
                    bool bfloat16) {
  const auto layers = Layers(widths, relus);
  auto call = [&](auto run) { return run(pool, layers, x, packed.typed_data(), result.typed_data(), d_result.typed_data(), hidden, rets); };
  if (!bfloat16) return call(BackwardAs<Float32, float>);
  if (x.element_type() == ffi::F32) return call(BackwardAs<BFloat16, float>);
  return call(BackwardAs<BFloat16, uint16_t>);
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxPack, Pack,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<Words>()
                                  .Attr<ffi::Span<const int64_t>>("widths")
                                  .Attr<ffi::Span<const int64_t>>("relus")
                                  .Attr<bool>("bfloat16")
                                  .Attr<bool>("both"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxMlp, Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Words>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("widths")
                                  .Attr<ffi::Span<const int64_t>>("relus")
                                  .Attr<bool>("bfloat16")
                                  .Attr<bool>("both"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(DlrmJaxMlpBack, Backward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Words>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<ffi::Span<const int64_t>>("widths")
                                  .Attr<ffi::Span<const int64_t>>("relus")
                                  .Attr<bool>("bfloat16"));

extern "C" int DlrmJaxHasBFloat16() { return BFloat16::kAvailable; }
