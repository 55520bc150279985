// The hidden states between the layers, against those of another implementation.

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/reference/reference_backend.h"
#include "tests/support/golden.h"
#include "worker/stage.h"

namespace caravan {
namespace {

constexpr double kTolerance = 1e-4;

std::unique_ptr<Stage> LoadStage(const Checkpoint& checkpoint, const StageSpec& spec) {
  Stage::Options options;
  options.name = "worker";
  options.kv_budget_bytes = 4 << 20;
  options.max_step_tokens = 256;
  auto stage = Stage::Create(checkpoint.config(), spec, checkpoint, *MakeCpuBackend({}), options,
                             [](int64_t, int64_t) { return true; });
  CARAVAN_CHECK(stage.ok());
  return *std::move(stage);
}

std::vector<float> Floats(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

struct HiddenList {
  GoldenModel model;
  std::string index;  // of ids_ and hidden_
};

class GoldenHiddenTest : public ::testing::TestWithParam<HiddenList> {};

TEST_P(GoldenHiddenTest, EveryLayerLeavesWhatTheReferenceLeaves) {
  const auto checkpoint = MustOpenCheckpoint(GetParam().model.directory);
  const auto golden = MustOpenGolden(GetParam().model.golden);
  const ModelConfig& config = checkpoint->config();
  const std::vector<int32_t> ids = GoldenValues<int32_t>(*golden, "ids_" + GetParam().index);
  // [num_hidden_layers + 1, tokens, hidden_size]: the embedding, then what each layer leaves; the
  // last one after the final norm.
  const std::vector<float> hidden = GoldenValues<float>(*golden, "hidden_" + GetParam().index);
  const size_t row_floats = ids.size() * static_cast<size_t>(config.hidden_size);
  const auto row = [&](int i) {
    return absl::MakeConstSpan(hidden).subspan(static_cast<size_t>(i) * row_floats, row_floats);
  };
  ASSERT_EQ(hidden.size(), row_floats * static_cast<size_t>(config.num_hidden_layers + 1));

  const std::unique_ptr<Backend> reference = MakeReferenceBackend();
  v1::Step step;
  v1::SequenceSlice& slice = *step.add_slices();
  slice.set_output(v1::SLICE_OUTPUT_NONE);
  for (const int32_t id : ids) slice.add_token_ids(static_cast<uint32_t>(id));
  for (uint32_t block = 0; block < 4; ++block) slice.add_kv_blocks(block);
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    const auto stage = LoadStage(*checkpoint, {layer, layer + 1, layer == 0, false});
    if (layer == 0) {
      std::vector<float> embedded(row_floats);
      reference->Embed(stage->weights().embedding, ids, embedded.data());
      EXPECT_EQ(embedded, std::vector<float>(row(0).begin(), row(0).end()));
    }
    step = stage->Run(std::move(step));
    ASSERT_FALSE(step.has_error()) << step.error().message();
    if (layer + 1 < config.num_hidden_layers) {
      EXPECT_LE(RelativeError(Floats(step.activations()), row(layer + 1)), kTolerance) << layer;
    }
  }
  const auto head =
      LoadStage(*checkpoint, {config.num_hidden_layers - 1, config.num_hidden_layers, false, true});
  std::vector<float> last = Floats(step.activations());
  reference->RmsNorm(last.data(), static_cast<int64_t>(ids.size()), config.hidden_size,
                     head->weights().final_layernorm, static_cast<float>(config.rms_norm_eps),
                     last.data());
  EXPECT_LE(RelativeError(last, row(config.num_hidden_layers)), kTolerance);
}

INSTANTIATE_TEST_SUITE_P(Goldens, GoldenHiddenTest,
                         ::testing::Values(HiddenList{kTinyR1, "0"}, HiddenList{kTinyR1, "4"},
                                           HiddenList{SmallGoldenModel("v3-like"), "1"},
                                           HiddenList{SmallGoldenModel("kimi-k2-like"), "1"},
                                           HiddenList{SmallGoldenModel("v2-lite-like"), "1"}),
                         [](const auto& info) { return "List" + std::to_string(info.index); });

}  // namespace
}  // namespace caravan
