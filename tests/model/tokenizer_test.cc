#include "model/tokenizer.h"

#include <functional>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/utf8_stream.h"
#include "tests/model/tokenizer_files.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(TokenizerTest, DeepSeekGoldensEncodeDecodeAndStreamExactly) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadDeepSeekTokenizer();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(tokenizer->vocab_size(), 128815);
  for (const json& line : ReadGoldenLines("deepseek-v3-tokenizer-golden.jsonl")) {
    const auto ids = line["ids"].get<std::vector<int32_t>>();
    const auto encoded = tokenizer->Encode(line["text"].get<std::string>());
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    EXPECT_EQ(*encoded, ids) << line;
    const auto decoded = tokenizer->Decode(ids);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(*decoded, line["decoded"].get<std::string>());
    // Token by token, and whatever comes first is whole characters.
    Utf8Stream stream;
    std::string streamed;
    for (const int32_t id : ids) {
      const std::string text = stream.Push(tokenizer->TokenBytes(id));
      EXPECT_EQ(FindInvalidUtf8(text), std::nullopt) << line;
      streamed += text;
    }
    EXPECT_EQ(streamed + stream.Flush(), *decoded) << line;
  }
}

TEST(TokenizerTest, LongTextsTakeNoQuadraticTime) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadDeepSeekTokenizer();
  ASSERT_NE(tokenizer, nullptr);
  // With a quadratic step anywhere these take hours, and the test's time limit ends them.
  const size_t size = size_t{1} << 20;
  for (const std::string& text :
       {std::string(100'000, ' '), std::string(size, 'a'), std::string(size, '!'),
        std::string(size, '<'), std::string(size, '\n'), std::string(size, ' ') + "x"}) {
    const auto ids = tokenizer->Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_LT(ids->size(), text.size());
    EXPECT_EQ(*tokenizer->Decode(*ids), text);
  }
}

TEST(TokenizerTest, DecodeOfEncodeIsTheText) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadTinyTokenizer();
  ASSERT_NE(tokenizer, nullptr);
  constexpr uint32_t kSeed = 7;
  std::mt19937 random(kSeed);
  const auto append = [](uint32_t point, std::string& text) {
    if (point < 0x80) {
      text += static_cast<char>(point);
    } else if (point < 0x800) {
      text += {static_cast<char>(0xC0 | point >> 6), static_cast<char>(0x80 | (point & 63))};
    } else if (point < 0x10000) {
      text += {static_cast<char>(0xE0 | point >> 12), static_cast<char>(0x80 | (point >> 6 & 63)),
               static_cast<char>(0x80 | (point & 63))};
    } else {
      text += {static_cast<char>(0xF0 | point >> 18), static_cast<char>(0x80 | (point >> 12 & 63)),
               static_cast<char>(0x80 | (point >> 6 & 63)), static_cast<char>(0x80 | (point & 63))};
    }
  };
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (uint32_t left = random() % 50; left > 0; --left) {
      const uint32_t limits[] = {0x80, 0x80, 0x800, 0x10000, 0x110000};
      const uint32_t point = random() % limits[random() % 5];
      if (point >= 0xD800 && point < 0xE000) continue;  // surrogates are no characters
      append(point, text);
      if (random() % 20 == 0) text += "</think>";
    }
    const auto ids = tokenizer->Encode(text);
    ASSERT_TRUE(ids.ok()) << ids.status() << ", seed " << kSeed;
    EXPECT_EQ(*tokenizer->Decode(*ids), text) << "seed " << kSeed;
  }
}

TEST(TokenizerTest, TinyRepliesDecode) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadTinyTokenizer();
  ASSERT_NE(tokenizer, nullptr);
  const int32_t eos = *tokenizer->AddedToken("<｜end▁of▁sentence｜>");
  for (const json& line : ReadGoldenLines("tiny-r1-replies.jsonl")) {
    auto ids = line["reply_ids"].get<std::vector<int32_t>>();
    ASSERT_EQ(ids.back(), eos) << line;
    ids.pop_back();
    EXPECT_EQ(*tokenizer->Decode(ids), line["reply"].get<std::string>());
  }
}

TEST(TokenizerTest, AddedTokensAreFoundInTheText) {
  json file = TinyTokenizerJson();
  for (const auto& [id, content, normalized] : std::vector<std::tuple<int, std::string, bool>>{
           {2044, "<a", true}, {2045, "<abc", true}, {2046, "bc<", false}}) {
    file["added_tokens"].push_back({{"id", id}, {"content", content}, {"normalized", normalized}});
  }
  const auto tokenizer = LoadTokenizer(WriteTemporaryFile(".json", file.dump()));
  ASSERT_NE(tokenizer, nullptr);
  const int32_t a = tokenizer->Encode("a")->front();
  EXPECT_THAT(*tokenizer->Encode("<abc<a<think>"), ElementsAre(2044, 2046, a, 2042))
      << "what is not normalized goes first";
  EXPECT_THAT(*tokenizer->Encode("<abc"), ElementsAre(2045)) << "the longest wins";
  EXPECT_EQ(tokenizer->AddedToken("<abc"), 2045);
  EXPECT_EQ(tokenizer->AddedToken("abc"), std::nullopt);
  EXPECT_TRUE(tokenizer->IsSpecial(0));
  EXPECT_FALSE(tokenizer->IsSpecial(2045));
  EXPECT_EQ(tokenizer->vocab_size(), 2047);
}

TEST(TokenizerTest, TokenBytesMayBePartOfACharacter) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadTinyTokenizer();
  ASSERT_NE(tokenizer, nullptr);
  const std::string rare = "\U0001F642";
  std::string bytes;
  const auto ids = *tokenizer->Encode(rare);
  EXPECT_GT(ids.size(), 1u);
  for (const int32_t id : ids) absl::StrAppend(&bytes, tokenizer->TokenBytes(id));
  EXPECT_EQ(bytes, rare);
  EXPECT_EQ(*tokenizer->Decode({ids[0]}), "\uFFFD");
  EXPECT_EQ(tokenizer->TokenBytes(tokenizer->vocab_size()), "");
  EXPECT_EQ(tokenizer->TokenBytes(-1), "");
}

TEST(TokenizerTest, RefusesTextThatIsNotUtf8AndUnknownIds) {
  const std::unique_ptr<Tokenizer> tokenizer = LoadTinyTokenizer();
  ASSERT_NE(tokenizer, nullptr);
  const absl::Status status = tokenizer->Encode("ab\xFF").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("byte 2"));
  for (const int32_t id : {-1, tokenizer->vocab_size(), INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer->Decode({5, id}).status().code(), absl::StatusCode::kInvalidArgument) << id;
  }
}

TEST(TokenizerTest, RefusesBrokenFilesByFileAndField) {
  struct Case {
    std::string named;
    std::function<void(json&)> break_it;
  };
  const std::vector<Case> cases = {
      {"merge 0 names the token \"nowhere\"",
       [](json& f) { f["model"]["merges"][0] = "nowhere b"; }},
      {"merge 0 makes the token \"zq\"", [](json& f) { f["model"]["merges"][0] = "z q"; }},
      {"merge 1 must be", [](json& f) { f["model"]["merges"][1] = "ab"; }},
      {"merge 1 must be", [](json& f) { f["model"]["merges"][1] = "a b c"; }},
      {"merge 1 must be",
       [](json& f) {
         f["model"]["merges"][1] = {"a", "b", "c"};
       }},
      {"merge 1 must be",
       [](json& f) {
         f["model"]["merges"][1] = {"a", 3};
       }},
      {"merge 1 must be", [](json& f) { f["model"]["merges"][1] = nullptr; }},
      {"\"merges\" must be an array", [](json& f) { f["model"]["merges"] = "a b"; }},
      {"repeats the id 70", [](json& f) { f["model"]["vocab"]["new"] = 70; }},
      {"token \"new\" must have", [](json& f) { f["model"]["vocab"]["new"] = -1; }},
      {"token \"new\" must have", [](json& f) { f["model"]["vocab"]["new"] = int64_t{1} << 40; }},
      {"token \"new\" must have", [](json& f) { f["model"]["vocab"]["new"] = UINT64_MAX; }},
      {"token \"new\" must have", [](json& f) { f["model"]["vocab"]["new"] = 2.5; }},
      {"token \"\" is empty", [](json& f) { f["model"]["vocab"][""] = 9999; }},
      {"no token for byte 0x21", [](json& f) { f["model"]["vocab"].erase("!"); }},
      {"\"vocab\" must be an object", [](json& f) { f["model"]["vocab"] = json::array(); }},
      {"\"type\" is \"Unigram\"", [](json& f) { f["model"]["type"] = "Unigram"; }},
      {"\"model\" is missing", [](json& f) { f.erase("model"); }},
      {"\"dropout\"", [](json& f) { f["model"]["dropout"] = 0.1; }},
      {"\"unk_token\"", [](json& f) { f["model"]["unk_token"] = "<unk>"; }},
      {"\"byte_fallback\"", [](json& f) { f["model"]["byte_fallback"] = true; }},
      {"\"fuse_unk\"", [](json& f) { f["model"]["fuse_unk"] = true; }},
      {"\"end_of_word_suffix\"", [](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }},
      {"\"normalizer\"",
       [](json& f) {
         f["normalizer"] = {{"type", "NFC"}};
       }},
      {"\"truncation\"",
       [](json& f) {
         f["truncation"] = {{"max_length", 8}};
       }},
      {"\"decoder\"", [](json& f) { f.erase("decoder"); }},
      {"\"Metaspace\"", [](json& f) { f["decoder"]["type"] = "Metaspace"; }},
      {"\"pre_tokenizer\" is missing", [](json& f) { f["pre_tokenizer"] = nullptr; }},
      {"added_tokens[1]", [](json& f) { f["added_tokens"][1]["id"] = 0; }},
      {"added_tokens[4]", [](json& f) { f["added_tokens"][4]["id"] = 2040; }},
      {"\"id\" must be an integer", [](json& f) { f["added_tokens"][4]["id"] = int64_t{1} << 31; }},
      {"repeats", [](json& f) { f["added_tokens"][4]["content"] = "<｜User｜>"; }},
      {"\"content\" must not be empty", [](json& f) { f["added_tokens"][4]["content"] = ""; }},
      {"\"lstrip\"", [](json& f) { f["added_tokens"][4]["lstrip"] = true; }},
      {"\"rstrip\"", [](json& f) { f["added_tokens"][4]["rstrip"] = true; }},
      {"\"single_word\"", [](json& f) { f["added_tokens"][4]["single_word"] = true; }},
      {"added_tokens[4]", [](json& f) { f["added_tokens"][4] = 7; }},
      {"\"added_tokens\" must be an array", [](json& f) { f["added_tokens"] = 7; }},
  };
  for (const Case& broken : cases) {
    json file = TinyTokenizerJson();
    broken.break_it(file);
    const std::string path = WriteTemporaryFile(".json", file.dump());
    const absl::Status status = Tokenizer::Load(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << broken.named;
    EXPECT_THAT(std::string(status.message()), HasSubstr(broken.named));
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
}

TEST(TokenizerTest, RefusesWhatIsNoJson) {
  for (const std::string& text : {std::string(), std::string("{"), std::string("[1]"),
                                  std::string(100'000, '['), std::string("\xFF\xFE")}) {
    EXPECT_EQ(Tokenizer::Load(WriteTemporaryFile(".json", text)).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(Tokenizer::Load("/nowhere/tokenizer.json").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace caravan
