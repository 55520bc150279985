#include "worker/input_statistics.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/quant/dequantize.h"
#include "model/tensor_table.h"
#include "tests/support/golden.h"
#include "worker/stage.h"

namespace caravan {
namespace {

/// tiny-r1 over the first list of its goldens, whose hidden states another implementation computed.
class InputStatisticsTest : public ::testing::Test {
 protected:
  InputStatisticsTest()
      : checkpoint_(MustOpenCheckpoint(kTinyR1.directory)),
        golden_(MustOpenGolden(kTinyR1.golden)),
        config_(checkpoint_->config()),
        ids_(GoldenValues<int32_t>(*golden_, "ids_0")) {}

  std::unique_ptr<Stage> Load(InputObserver* observer) const {
    Stage::Options options;
    options.name = "worker";
    options.kv_budget_bytes = 4 << 20;
    options.max_step_tokens = 256;
    std::unique_ptr<Backend> backend = *MakeCpuBackend({});
    if (observer != nullptr) backend = MakeObservingBackend(std::move(backend), observer);
    auto stage =
        Stage::Create(config_, {0, config_.num_hidden_layers, true, true, true}, *checkpoint_,
                      std::move(backend), options, [](int64_t, int64_t) { return true; });
    CARAVAN_CHECK(stage.ok());
    return *std::move(stage);
  }

  std::string Run(Stage& stage) const {
    v1::Step step;
    v1::SequenceSlice& slice = *step.add_slices();
    slice.set_output(v1::SLICE_OUTPUT_LOGITS);
    slice.set_draft(true);
    for (const int32_t id : ids_) slice.add_token_ids(static_cast<uint32_t>(id));
    for (uint32_t block = 0; block < 4; ++block) slice.add_kv_blocks(block);
    step = stage.Run(std::move(step));
    EXPECT_FALSE(step.has_error()) << step.error().message();
    return step.results(0).logits();
  }

  std::vector<double> Vector(const std::string& name) const {
    const TensorInfo& info = *checkpoint_->Find(name);
    std::vector<std::byte> bytes(static_cast<size_t>(info.num_bytes()));
    CARAVAN_CHECK(checkpoint_->Read(name, absl::MakeSpan(bytes)).ok());
    std::vector<double> values(static_cast<size_t>(info.num_elements()));
    DequantizeRow(info.dtype, bytes.data(), info.num_elements(), values.data());
    return values;
  }

  /// The mean squares of RMS-normed rows.
  std::vector<double> NormedMeanSquares(absl::Span<const float> rows,
                                        const std::vector<double>& weight) const {
    const size_t width = weight.size();
    std::vector<double> mean_squares(width);
    const double num_rows = static_cast<double>(rows.size() / width);
    for (size_t first = 0; first < rows.size(); first += width) {
      double power = 0;
      for (size_t i = 0; i < width; ++i) {
        power += std::pow(static_cast<double>(rows[first + i]), 2) / static_cast<double>(width);
      }
      for (size_t i = 0; i < width; ++i) {
        mean_squares[i] += std::pow(static_cast<double>(rows[first + i]) * weight[i], 2) /
                           (power + config_.rms_norm_eps) / num_rows;
      }
    }
    return mean_squares;
  }

  const std::unique_ptr<Checkpoint> checkpoint_;
  const std::unique_ptr<SafetensorsFile> golden_;
  const ModelConfig& config_;
  const std::vector<int32_t> ids_;
};

TEST_F(InputStatisticsTest, AreThoseOfAPlainComputationInDouble) {
  InputStatistics statistics;
  const auto stage = Load(&statistics);
  Run(*stage);
  const Importance importance = statistics.Result(config_, stage->spec(), stage->weights());
  const std::vector<float> hidden = GoldenValues<float>(*golden_, "hidden_0");
  const size_t layer_floats = ids_.size() * static_cast<size_t>(config_.hidden_size);
  for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".");
    const std::vector<double> expected =
        NormedMeanSquares(absl::MakeConstSpan(hidden).subspan(
                              static_cast<size_t>(layer) * layer_floats, layer_floats),
                          Vector(prefix + "input_layernorm.weight"));
    for (const char* name : {"self_attn.q_a_proj.weight", "self_attn.kv_a_proj_with_mqa.weight"}) {
      const Importance::Columns* const columns = importance.Find(prefix + name);
      ASSERT_NE(columns, nullptr) << prefix << name;
      EXPECT_EQ(columns->count, static_cast<int64_t>(ids_.size()));
      ASSERT_EQ(columns->mean_square.size(), expected.size());
      double scale = 0;
      for (const double value : expected) scale = std::max(scale, value);
      for (size_t i = 0; i < expected.size(); ++i) {
        // The hidden states agree to 1e-4 of their norm (golden_hidden_test), their squares to
        // twice that.
        EXPECT_NEAR(columns->mean_square[i], expected[i], 2e-4 * scale) << prefix << name << i;
      }
    }
  }
}

TEST_F(InputStatisticsTest, CoverEveryMatrixAndCountItsRows) {
  InputStatistics statistics;
  const auto stage = Load(&statistics);
  Run(*stage);
  const Importance importance = statistics.Result(config_, stage->spec(), stage->weights());
  const int64_t tokens = static_cast<int64_t>(ids_.size());
  int64_t of_experts = 0;
  StageSpec whole = {0, config_.num_hidden_layers, true, true, true};
  for (const TensorSpec& spec : StageTensors(config_, whole)) {
    const Importance::Columns* const columns = importance.Find(spec.name);
    if (spec.tensor_class == TensorClass::kNorm) {
      EXPECT_EQ(columns, nullptr) << spec.name;
      continue;
    }
    ASSERT_NE(columns, nullptr) << spec.name;
    EXPECT_EQ(static_cast<int64_t>(columns->mean_square.size()), spec.shape[1]) << spec.name;
    if (spec.tensor_class == TensorClass::kRoutedExpert) {
      of_experts += columns->count;
      if (columns->count == 0) {
        for (const float value : columns->mean_square) EXPECT_EQ(value, 0);
      }
    } else if (spec.tensor_class == TensorClass::kEmbedding) {
      EXPECT_EQ(columns->count, 0);
    } else {
      // The layer of multi-token prediction sees no row without a token after it. The head serves
      // both it and the model.
      const bool is_mtp = absl::StartsWith(
          spec.name, absl::StrCat("model.layers.", config_.num_hidden_layers, "."));
      const bool is_head = spec.tensor_class == TensorClass::kHead;
      EXPECT_EQ(columns->count, is_head ? 2 * tokens - 1 : tokens - is_mtp) << spec.name;
      double sum = 0;
      for (const float value : columns->mean_square) sum += static_cast<double>(value);
      EXPECT_GT(sum, 0) << spec.name;
    }
  }
  // Gate, up and down of each expert, in the layers after the first.
  EXPECT_EQ(of_experts, 3 * config_.router.num_experts_per_tok *
                            ((config_.num_hidden_layers - 1) * tokens + tokens - 1));
}

TEST_F(InputStatisticsTest, ChangeNothing) {
  InputStatistics statistics;
  EXPECT_TRUE(Run(*Load(&statistics)) == Run(*Load(nullptr)));
}

}  // namespace
}  // namespace caravan
