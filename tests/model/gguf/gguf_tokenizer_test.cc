#include "model/gguf/gguf_tokenizer.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/gguf/gguf_file.h"
#include "tests/model/gguf/gguf_model.h"
#include "tests/model/tokenizer_files.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

class GgufTokenizerTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::string> Convert(const GgufWriter& writer) {
    CARAVAN_ASSIGN_OR_RETURN(file_, GgufFile::Open(dir_.Write("x.gguf", writer.Bytes())));
    return GgufTokenizerJson(file_->metadata());
  }

  /// Null after a failure that says why.
  std::unique_ptr<Tokenizer> ThroughGguf(const json& tokenizer, int64_t vocab_size,
                                         const std::string& pre) {
    GgufWriter writer;
    AddGgufTokenizer(tokenizer, vocab_size, pre, writer);
    const absl::StatusOr<std::string> text = Convert(writer);
    if (!text.ok()) {
      ADD_FAILURE() << text.status();
      return nullptr;
    }
    return LoadTokenizer(dir_.Write("tokenizer.json", *text));
  }

  void ExpectRefused(const std::function<void(GgufWriter&)>& write, const std::string& message,
                     absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    GgufWriter writer;
    write(writer);
    const absl::Status status = Convert(writer).status();
    EXPECT_EQ(status.code(), code) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_THAT(std::string(status.message()), HasSubstr(dir_.File("x.gguf")));
  }

  TempDir dir_;
  std::unique_ptr<GgufFile> file_;
};

void ExpectSame(const Tokenizer& original, const Tokenizer& converted, const std::string& text) {
  const auto expected = original.Encode(text);
  const auto ids = converted.Encode(text);
  ASSERT_TRUE(expected.ok() && ids.ok()) << expected.status() << ", " << ids.status();
  EXPECT_EQ(*ids, *expected) << text;
  EXPECT_EQ(*converted.Decode(*ids), *original.Decode(*ids));
}

TEST_F(GgufTokenizerTest, TinyTokenizerEncodesTheSame) {
  const std::unique_ptr<Tokenizer> original = LoadTinyTokenizer();
  const std::unique_ptr<Tokenizer> converted =
      ThroughGguf(TinyTokenizerJson(), 2048, "deepseek-v3");
  ASSERT_TRUE(original != nullptr && converted != nullptr);
  EXPECT_EQ(converted->vocab_size(), original->vocab_size()) << "padding is left out";
  for (const json& line : ReadGoldenLines("deepseek-v3-tokenizer-golden.jsonl")) {
    ExpectSame(*original, *converted, line["text"].get<std::string>());
  }
  for (const json& line : ReadGoldenLines("tiny-r1-replies.jsonl")) {
    ExpectSame(*original, *converted, line["reply"].get<std::string>());
  }
  ExpectSame(*original, *converted,
             "<｜begin▁of▁sentence｜><｜User｜>1+1?<｜Assistant｜><think>hm</think>2"
             "<｜end▁of▁sentence｜>");
  for (int32_t id = 0; id < original->vocab_size(); ++id) {
    EXPECT_EQ(converted->TokenBytes(id), original->TokenBytes(id)) << id;
  }
  EXPECT_EQ(converted->AddedToken("<think>"), original->AddedToken("<think>"));
  EXPECT_FALSE(converted->IsSpecial(*converted->AddedToken("<think>")));
  EXPECT_TRUE(converted->IsSpecial(*converted->AddedToken("<｜end▁of▁sentence｜>")));
}

TEST_F(GgufTokenizerTest, DeepSeekGoldensEncodeExactly) {
  const std::unique_ptr<Tokenizer> original = LoadDeepSeekTokenizer();
  ASSERT_NE(original, nullptr);
  const auto file = ReadJsonFile(CARAVAN_TEST_DATA_DIR "/deepseek-v3/tokenizer.json");
  ASSERT_TRUE(file.ok()) << file.status();
  const std::unique_ptr<Tokenizer> converted = ThroughGguf(*file, 129280, "deepseek-v3");
  ASSERT_NE(converted, nullptr);
  EXPECT_EQ(converted->vocab_size(), 128815);
  for (const json& line : ReadGoldenLines("deepseek-v3-tokenizer-golden.jsonl")) {
    const auto ids = converted->Encode(line["text"].get<std::string>());
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, line["ids"].get<std::vector<int32_t>>()) << line;
    EXPECT_EQ(*converted->Decode(*ids), line["decoded"].get<std::string>());
  }
  for (int32_t id = 0; id < original->vocab_size(); ++id) {
    ASSERT_EQ(converted->TokenBytes(id), original->TokenBytes(id)) << id;
  }
  // The pattern that we write, against the one of the file.
  EXPECT_EQ(json::parse(*GgufTokenizerJson(file_->metadata()))["pre_tokenizer"],
            (*file)["pre_tokenizer"]);
}

TEST_F(GgufTokenizerTest, CutsAsDeepSeekLlmDoes) {
  GgufWriter writer;
  AddGgufTokenizer(TinyTokenizerJson(), 2048, "deepseek-llm", writer);
  const auto text = Convert(writer);
  ASSERT_TRUE(text.ok()) << text.status();
  const auto pre_tokenizer =
      PreTokenizer::Parse(json::parse(*text)["pre_tokenizer"], "pre_tokenizer");
  ASSERT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  // Worked out by hand from the six patterns.
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {"Hello world", {"Hello", " world"}},
      {"a\r\nb", {"a", "\r", "\n", "b"}},
      {"x=12.5", {"x", "=", "1", "2", ".", "5"}},
      {"don't", {"don", "'", "t"}},
      // The third pattern's range from : to ~ has the ASCII letters too, so it cuts words.
      {"gr\u00fc\u00df  dich  ", {"gr", "\u00fc\u00df", " ", " dich", "  "}},
      {"\u4f60\u597d\uff0cworld", {"\u4f60\u597d", "\uff0c", "world"}},
      {"\ud55c\uae00 1\u00bd", {"\ud55c\uae00", " ", "1", "\u00bd"}},
      {"a_b [c]", {"a", "_", "b", " [", "c", "]"}},
      {"\u1f7d\u1f7e", {"\u1f7d", "\u1f7e"}},  // the last letter of a range, and what is after it
  };
  for (const auto& [whole, pieces] : cases) {
    const auto split = pre_tokenizer->Split(whole);
    ASSERT_TRUE(split.ok()) << split.status();
    EXPECT_THAT(*split, ElementsAreArray(pieces)) << whole;
  }
}

TEST_F(GgufTokenizerTest, RefusesOtherTokenizersByKey) {
  const auto small = [](const std::string& model, const std::string& pre,
                        const std::vector<std::string>& tokens, const std::vector<int32_t>& types) {
    return [=](GgufWriter& writer) {
      writer.SetString("tokenizer.ggml.model", model);
      writer.SetString("tokenizer.ggml.pre", pre);
      writer.SetStrings("tokenizer.ggml.tokens", tokens);
      writer.SetArray("tokenizer.ggml.token_type", types);
    };
  };
  ExpectRefused([](GgufWriter&) {}, "\"tokenizer.ggml.model\" is missing");
  ExpectRefused(small("llama", "default", {"a"}, {1}), "\"tokenizer.ggml.model\" is \"llama\"",
                absl::StatusCode::kUnimplemented);
  for (const char* pre : {"kimi-k2", "deepseek-r1-qwen", "deepseek-coder", ""}) {
    ExpectRefused(small("gpt2", pre, {"a"}, {1}), std::string("\"tokenizer.ggml.pre\" is \"") + pre,
                  absl::StatusCode::kUnimplemented);
  }
  ExpectRefused(small("gpt2", "deepseek-v3", {"a", "b"}, {1}),
                "\"tokenizer.ggml.token_type\" has 1 elements, but tokenizer.ggml.tokens has 2");
  ExpectRefused(small("gpt2", "deepseek-v3", {"a", "b"}, {1, 6}), "is 6 for token 1");
  ExpectRefused(small("gpt2", "deepseek-v3", {"a", "b"}, {0, 1}), "is 0 for token 0");
  ExpectRefused(small("gpt2", "deepseek-v3", {"a", "a"}, {1, 1}),
                "\"tokenizer.ggml.tokens\" is repeated at element 1");
  ExpectRefused(small("gpt2", "deepseek-v3", {"a", ""}, {1, 1}),
                "\"tokenizer.ggml.tokens\" is empty at element 1");
  ExpectRefused(small("gpt2", "deepseek-v3", {"a", "\xff"}, {1, 1}),
                "\"tokenizer.ggml.tokens\" is not valid UTF-8 at element 1");
  ExpectRefused(small("gpt2", "deepseek-v3", {"a", "b"}, {1, 1}),
                "\"tokenizer.ggml.merges\" is missing");
}

TEST_F(GgufTokenizerTest, TellsWhatBeginsAndEndsAText) {
  const auto convert = [this](const std::function<void(GgufWriter&)>& add) {
    GgufWriter writer;
    writer.SetStrings("tokenizer.ggml.tokens", {"a", "<b>", "<e>"});
    add(writer);
    file_ = *GgufFile::Open(dir_.Write("x.gguf", writer.Bytes()));
    return GgufTokenizerConfigJson(file_->metadata());
  };
  EXPECT_EQ(*convert([](GgufWriter&) {}), "{}");
  const auto whole = convert([](GgufWriter& writer) {
    writer.Set("tokenizer.ggml.bos_token_id", uint32_t{1});
    writer.Set("tokenizer.ggml.eos_token_id", uint32_t{2});
    writer.Set("tokenizer.ggml.add_bos_token", false);
    writer.SetString("tokenizer.chat_template", "{{x}}");
  });
  EXPECT_EQ(json::parse(*whole), json({{"bos_token", "<b>"},
                                       {"eos_token", "<e>"},
                                       {"add_bos_token", false},
                                       {"chat_template", "{{x}}"}}));
  const absl::Status outside = convert([](GgufWriter& writer) {
                                 writer.Set("tokenizer.ggml.eos_token_id", uint32_t{3});
                               }).status();
  EXPECT_EQ(outside.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(outside.message()), HasSubstr("tokenizer.ggml.eos_token_id"));
}

}  // namespace
}  // namespace caravan
