// DLRM's dense model in predictions, outside of XLA: bottom MLP, dot interaction and top MLP.
//
// Samples go through all of it in blocks, so that activations stay in a core's cache. A sample's
// logit is the same bits in any batch and for any number of threads: each is summed by itself, in
// one order.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "interaction.h"
#include "mlp.h"
#include "threads.h"

namespace {

using mlp::Float32;
using mlp::Layer;
using mlp::Scratch;

// As `native.dense_model` describes it to ctypes.
struct Mlp {
  int64_t layers;
  const int64_t* widths;  // of the input, then of each layer
  const int64_t* relus;   // whether one follows each layer
  const float* const* biases;
  const uint32_t* packed;
};

struct Model {
  Mlp bottom, top;
  int64_t vectors;         // that interact with the bottom MLP's
  const int64_t* columns;  // first of each vector
  int64_t self_interaction;
};

struct Samples {
  const float* dense;    // [n, D]
  const float* vectors;  // [n, columns]
  int64_t n, columns;
};

// Starting a thread pays off from some samples on: its core also reads all weights.
constexpr int64_t kSamplesPerThread = 64;

// Runs tasks on the calling thread.
struct Here {
  template <typename Work>
  void operator()(int64_t tasks, const Work& work) const {
    for (int64_t i = 0; i < tasks; ++i) work(i);
  }
};

std::vector<Layer> LayersOf(const Mlp& mlp) {
  std::vector<Layer> layers;
  for (int64_t i = 0; i < mlp.layers; ++i)
    layers.push_back({mlp.widths[i], mlp.widths[i + 1], mlp.relus[i] != 0});
  return layers;
}

// An MLP that is ready to run.
struct Layers {
  const std::vector<Layer> layers;
  const mlp::Packed<Float32> packed;
  const std::vector<const float*> biases;

  explicit Layers(const Mlp& mlp)
      : layers(LayersOf(mlp)), packed(layers, mlp.packed, false),
        biases(mlp.biases, mlp.biases + mlp.layers) {}

  int64_t in() const { return layers.front().in; }
  int64_t out() const { return layers.back().out; }

  void Run(const float* x, int64_t n, float* result) const {
    mlp::Forward<Float32>(layers, packed, biases, x, n, {}, result, 1, Here());
  }
};

}  // namespace

// Packs the kernels of an MLP; `packed` has room for `Packed::words`.
extern "C" void DlrmJaxPackLayers(const void* described, const float* const* kernels,
                                  uint32_t* packed) {
  const Mlp& given = *static_cast<const Mlp*>(described);
  mlp::Pack<Float32>(LayersOf(given), {kernels, kernels + given.layers}, packed, false, Here());
}

// The logits of n samples. The top MLP has one output, and an input for the bottom MLP's vector and
// all pairs.
extern "C" void DlrmJaxDenseModel(const void* described, const float* dense, const float* vectors,
                                  int64_t n, int64_t columns, float* logits, int64_t threads) {
  const Model& model = *static_cast<const Model*>(described);
  const Layers bottom(model.bottom), top(model.top);
  threads = std::clamp<int64_t>(n / kSamplesPerThread, 1, threads);
  const int64_t size = mlp::BlockRows(n, threads);
  OnThreads(threads, (n + size - 1) / size, [&](int64_t block) {
    const int64_t begin = block * size, rows = std::min(size, n - begin);
    const Scratch x(rows * bottom.out()), z(rows * top.in());
    float* const from = reinterpret_cast<float*>(x.get());
    float* const to = reinterpret_cast<float*>(z.get());
    bottom.Run(dense + begin * bottom.in(), rows, from);
    interaction::Vectors given{from, {}, rows, bottom.out(), model.self_interaction != 0, false};
    for (int64_t i = 0; i < model.vectors; ++i)
      given.pooled.push_back({vectors + begin * columns + model.columns[i], columns});
    const interaction::Interaction interact(given);
    for (int64_t i = 0; i < rows; i += interaction::kLanes)
      interact(i, std::min<int64_t>(interaction::kLanes, rows - i), to);
    top.Run(to, rows, logits + begin);
  });
}
