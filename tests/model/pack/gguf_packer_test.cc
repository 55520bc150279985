// Packing a GGUF file with its tokenizer.

#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/json.h"
#include "gtest/gtest.h"
#include "kernels/quant/dequantize.h"
#include "model/pack/packer.h"
#include "model/text_model.h"
#include "tests/model/gguf/gguf_model.h"
#include "tests/model/pack/packer_testing.h"
#include "tests/model/tokenizer_files.h"
#include "tests/support/gguf_writer.h"

namespace caravan {
namespace {

using nlohmann::json;

class GgufPackerTest : public PackerTest {
 protected:
  /// The source as a GGUF file with its tokenizer, of the kind `pre`; the path.
  std::string WriteGguf(absl::string_view pre) const {
    const json config = json::parse(source_->config_json());
    GgufWriter writer;
    AddGgufConfig(config, GgufAge::kNew, /*with_mtp=*/true, writer);
    AddGgufTokenizer(TinyTokenizerJson(), config["vocab_size"], pre, writer);
    const std::string chat_path = JoinPath(kTiny, "tokenizer_config.json");
    writer.SetString("tokenizer.chat_template",
                     (*ReadJsonFile(chat_path))["chat_template"].get<std::string>());
    writer.Set("tokenizer.ggml.add_bos_token", true);
    const RawTensors tensors = SplitKvB(
        DequantizedTensors(*source_, source_->config(), /*with_mtp=*/true), source_->config());
    for (const auto& [name, tensor] : GgufTensors(tensors, source_->config().num_attention_heads)) {
      AddGgufTensor(name, tensor, writer);
    }
    return dir_.Write("model.gguf", writer.Bytes());
  }
};

TEST_F(GgufPackerTest, AGgufWithATokenizerThatCaravanLacksIsPackedWithoutIt) {
  const auto gguf = OpenStoredModel(WriteGguf("qwen2"));
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  const PackOptions options = Options("gguf", {});
  const absl::Status status = Pack(**gguf, options);
  ASSERT_TRUE(status.ok()) << status;
  const auto packed = OpenStoredModel(options.output);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ((*packed)->TensorNames(), (*gguf)->TensorNames());
  EXPECT_TRUE(absl::IsNotFound((*packed)->ReadText("tokenizer.json").status()));
}

TEST_F(GgufPackerTest, PacksAGgufWithItsTokenizerAndLosesNothing) {
  const std::string path = WriteGguf("deepseek-v3");
  const absl::StatusOr<std::unique_ptr<StoredModel>> gguf = OpenStoredModel(path);
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  const PackOptions options = Options("gguf", {});
  ASSERT_TRUE(Pack(**gguf, options).ok());
  const absl::StatusOr<std::unique_ptr<StoredModel>> packed = OpenStoredModel(options.output);
  ASSERT_TRUE(packed.ok()) << packed.status();
  EXPECT_EQ((*packed)->TensorNames(), (*gguf)->TensorNames());
  EXPECT_NE((*packed)->fingerprint(), (*gguf)->fingerprint());
  for (const std::string& name : (*packed)->TensorNames()) {
    EXPECT_EQ((*packed)->Find(name)->dtype, (*gguf)->Find(name)->dtype) << name;
    EXPECT_TRUE(RowMajor(**packed, name) == ReadAll(**gguf, name)) << name;
  }
  // And what is said to the model is the same, from either.
  const std::vector<ChatTurn> turns = {{"system", "Be brief."}, {"user", "What is 487 + 358?"}};
  const auto original = TextModel::Load(kTiny, source_->config());
  ASSERT_TRUE(original.ok()) << original.status();
  for (const StoredModel* model : {gguf->get(), packed->get()}) {
    const auto text = TextModel::Load(model->path(), model->config());
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(*(*text)->chat().Encode(turns), *(*original)->chat().Encode(turns));
    EXPECT_EQ((*text)->stop_token_ids(), (*original)->stop_token_ids());
  }
}

}  // namespace
}  // namespace caravan
