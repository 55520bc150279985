// What `caravan eval` measures, against what other implementations computed, and against itself.

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "cli/choice_scores.h"
#include "cli/local_pipeline.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/text_model.h"
#include "nlohmann/json.hpp"
#include "tests/support/golden.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

const char kGoldens[] = CARAVAN_SOURCE_DIR "/tests/data/goldens/";

/// The logits differ by 1e-4 of their norm at most (golden_pipeline_test.cc), here by 4e-7; the
/// rest are the 6 digits that are printed.
constexpr double kTolerance = 1e-5;

std::unique_ptr<TextModel> MustLoadText(const ModelConfig& config) {
  absl::StatusOr<std::unique_ptr<TextModel>> text = TextModel::Load(kTinyR1.directory, config);
  CARAVAN_CHECK(text.ok());
  return *std::move(text);
}

/// The value of each row that `eval --text` printed, by its name.
std::map<std::string, double> Rows(const std::string& out) {
  std::map<std::string, double> rows;
  const std::vector<std::string> lines = absl::StrSplit(out, '\n', absl::SkipEmpty());
  for (const std::string& line : lines) {
    if (line.size() < 45) {
      ADD_FAILURE() << line;
      continue;
    }
    const std::string name(absl::StripAsciiWhitespace(line.substr(0, 32)));
    rows[name] = std::atof(line.substr(33).c_str());
  }
  return rows;
}

/// Runs `caravan eval --model tiny-r1 arguments...`; its standard output.
std::string Eval(TestCluster& cluster, std::vector<std::string> arguments,
                 const std::string& model = kTinyR1.directory) {
  arguments.insert(arguments.begin(), {"eval", "--model", model});
  TestProcess& eval = cluster.Launch("eval", std::move(arguments));
  EXPECT_EQ(eval.Wait(), 0) << eval.Transcript();
  return eval.Out();
}

struct Expected {
  int64_t tokens = 0;
  double nll = 0;  // of all of them
};

/// The first `num_tokens` of golden list `i`, by its logits: softmax in double, worked out here.
Expected GoldenLikelihood(const SafetensorsFile& golden, int i, size_t num_tokens) {
  const auto ids = GoldenValues<int32_t>(golden, absl::StrCat("ids_", i));
  const auto logits = GoldenValues<float>(golden, absl::StrCat("logits_", i));
  const size_t vocab_size = logits.size() / ids.size();
  Expected expected;
  for (size_t t = 0; t + 1 < num_tokens; ++t) {
    const absl::Span<const float> row =
        absl::MakeConstSpan(logits).subspan(t * vocab_size, vocab_size);
    double sum = 0;
    for (const float logit : row) sum += std::exp(static_cast<double>(logit));
    expected.nll += std::log(sum) - row[static_cast<size_t>(ids[t + 1])];
    ++expected.tokens;
  }
  return expected;
}

class EvalTextTest : public ::testing::Test {
 protected:
  /// The text of the first `num_tokens` of golden list `i`, which are its tokens again. Begins with
  /// the token that begins texts, spelt out.
  std::string GoldenText(int i, size_t num_tokens) {
    auto ids = GoldenValues<int32_t>(*golden_, absl::StrCat("ids_", i));
    ids.resize(num_tokens);
    const std::string text = *text_->tokenizer().Decode(ids);
    EXPECT_EQ(*text_->tokenizer().Encode(text), ids) << text;
    return text;
  }
  size_t GoldenSize(int i) {
    return GoldenValues<int32_t>(*golden_, absl::StrCat("ids_", i)).size();
  }

  static void ExpectLikelihood(const std::string& out, const Expected& expected) {
    const std::map<std::string, double> rows = Rows(out);
    EXPECT_EQ(rows.at("tokens scored"), static_cast<double>(expected.tokens)) << out;
    const double mean = expected.nll / static_cast<double>(expected.tokens);
    EXPECT_NEAR(rows.at("mean negative log-likelihood"), mean, kTolerance * mean) << out;
    EXPECT_NEAR(rows.at("perplexity"), std::exp(mean), kTolerance * std::exp(mean)) << out;
  }

  TestCluster cluster_;
  const std::unique_ptr<Checkpoint> checkpoint_ = MustOpenCheckpoint(kTinyR1.directory);
  const std::unique_ptr<TextModel> text_ = MustLoadText(checkpoint_->config());
  const std::unique_ptr<SafetensorsFile> golden_ = MustOpenGolden(kTinyR1.golden);
};

TEST_F(EvalTextTest, PerplexityIsThatOfTransformersLogits) {
  for (int i = 0; i < 5; ++i) {
    const std::string path = cluster_.dir().Write("text", GoldenText(i, GoldenSize(i)));
    ExpectLikelihood(Eval(cluster_, {"--text", path}),
                     GoldenLikelihood(*golden_, i, GoldenSize(i)));
  }
}

TEST_F(EvalTextTest, EveryWindowIsATextOfItsOwn) {
  constexpr size_t kWindow = 32;
  std::string spelt;    // with what begins each
  std::string unspelt;  // without, so that it must be put there
  Expected expected;
  for (int i = 0; i < 5; ++i) {
    const std::string text = GoldenText(i, kWindow);
    absl::StrAppend(&spelt, text);
    const std::string begin = *text_->tokenizer().Decode({text_->chat().bos_token_id()});
    ASSERT_TRUE(absl::StartsWith(text, begin)) << text;
    absl::StrAppend(&unspelt, text.substr(begin.size()));
    const Expected one = GoldenLikelihood(*golden_, i, kWindow);
    expected.tokens += one.tokens;
    expected.nll += one.nll;
  }
  for (const std::string& text : {spelt, unspelt}) {
    const std::string path = cluster_.dir().Write("text", text);
    ExpectLikelihood(Eval(cluster_, {"--text", path, "--window", absl::StrCat(kWindow)}), expected);
  }
}

TEST_F(EvalTextTest, AModelIsNoDistanceFromItself) {
  const std::string path = cluster_.dir().Write("text", GoldenText(3, GoldenSize(3)));
  const std::string out = Eval(cluster_, {"--text", path, "--window", "40", "--against",
                                          kTinyR1.directory, "--workers", "2"});
  const std::map<std::string, double> rows = Rows(out);
  EXPECT_EQ(rows.at("mean KL divergence"), 0) << out;
  EXPECT_EQ(rows.at("largest KL divergence"), 0) << out;
  EXPECT_EQ(rows.at("top-1 agreement"), 100) << out;
  EXPECT_EQ(rows.at("perplexity"), rows.at("perplexity of --against")) << out;
  EXPECT_EQ(rows.at("mean negative log-likelihood"), rows.at("the same of --against")) << out;
}

TEST_F(EvalTextTest, APackedModelIsAtADistance) {
  const std::string packed = cluster_.dir().File("packed");
  TestProcess& pack = cluster_.Launch(
      "pack", {"pack", "--model", kTinyR1.directory, "--out", packed, "--preset", "2bit"});
  ASSERT_EQ(pack.Wait(), 0) << pack.Transcript();
  const std::string path = cluster_.dir().Write("text", GoldenText(3, GoldenSize(3)));
  const std::string out = Eval(cluster_, {"--text", path, "--against", kTinyR1.directory}, packed);
  const std::map<std::string, double> rows = Rows(out);
  EXPECT_GT(rows.at("mean KL divergence"), 0) << out;
  EXPECT_GT(rows.at("largest KL divergence"), rows.at("mean KL divergence")) << out;
  EXPECT_GT(rows.at("top-1 agreement"), 50) << out;
  EXPECT_LE(rows.at("top-1 agreement"), 100) << out;
  // The other one is the golden one.
  const Expected expected = GoldenLikelihood(*golden_, 3, GoldenSize(3));
  const double mean = expected.nll / static_cast<double>(expected.tokens);
  EXPECT_NEAR(rows.at("the same of --against"), mean, kTolerance * mean) << out;
  EXPECT_NE(rows.at("mean negative log-likelihood"), rows.at("the same of --against")) << out;
  EXPECT_NE(rows.at("perplexity"), rows.at("perplexity of --against")) << out;
}

TEST_F(EvalTextTest, WhatIsWrongIsNamed) {
  struct Case {
    std::vector<std::string> arguments;
    std::string says;
  };
  const std::string good = cluster_.dir().Write("good", "some text");
  const std::string empty = cluster_.dir().Write("empty", "");
  const std::string bytes = cluster_.dir().Write("bytes", "ab\xff");
  const std::string other = SmallGoldenModel("v3-like").directory;
  for (const Case& test : {
           Case{{}, "--tasks or --text is required"},
           {{"--against", kTinyR1.directory, "--tasks", good}, "--against requires --text"},
           {{"--window", "64", "--tasks", good}, "--window requires --text"},
           {{"--text", good, "--window", "1"}, "--window"},
           {{"--text", good, "--window", "4097"},
            "--window 4097: more than the model's context of 4096 tokens"},
           {{"--text", good, "--window", "65", "--context", "64"},
            "--window 65: more than the --context of 64 tokens"},
           {{"--text", good, "--context", "4097"}, "--context 4097: the model allows 1 to 4096"},
           {{"--text", good, "--ram", "much"}, "--ram"},
           {{"--text", good, "--ram", "0"}, "--ram: must be more than 0"},
           {{"--text", good + ".none"}, "--text: " + good + ".none: No such file or directory"},
           {{"--text", empty}, absl::StrCat("--text ", empty, ": holds no token")},
           {{"--text", bytes}, absl::StrCat("--text ", bytes, ": ")},
           {{"--text", good, "--against", "/nowhere"}, "--against: /nowhere"},
           {{"--text", good, "--against", other},
            absl::StrCat("--against ", other, ": a vocabulary of 320 tokens")},
       }) {
    std::vector<std::string> arguments = {"eval", "--model", kTinyR1.directory};
    arguments.insert(arguments.end(), test.arguments.begin(), test.arguments.end());
    TestProcess& eval = cluster_.Launch("eval", arguments);
    EXPECT_EQ(eval.Wait(), 2) << eval.Transcript();
    EXPECT_THAT(eval.Err(), HasSubstr(test.says)) << eval.Transcript();
    EXPECT_EQ(eval.Out(), "") << eval.Transcript();
  }
}

std::vector<nlohmann::json> ReadLines(const std::string& name, size_t stride) {
  std::ifstream in(kGoldens + name);
  std::vector<nlohmann::json> lines;
  size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    if (number++ % stride == 0) lines.push_back(nlohmann::json::parse(line));
  }
  CARAVAN_CHECK(!lines.empty());
  return lines;
}

const std::vector<std::string> kLetters = {" A", " B", " C", " D"};

TEST(EvalChoicesTest, PlainPromptsAreSolvedAsTransformersSolvesThem) {
  // Of 500 four-way questions, 100 a subject, whose right letter is the likeliest by the goldens.
  const size_t stride = kSanitized ? 50 : 10;
  std::string tasks;
  for (const nlohmann::json& golden : ReadLines("tiny-r1-mmlu.jsonl", stride)) {
    const nlohmann::json task = {{"task", golden["subject"]},
                                 {"prompt", golden["prompt"]},
                                 {"choices", kLetters},
                                 {"answer", " " + golden["answer"].get<std::string>()}};
    absl::StrAppend(&tasks, task.dump(), "\n");
  }
  TestCluster cluster;
  const std::string path = cluster.dir().Write("tasks.jsonl", tasks);
  const std::string out = Eval(cluster, {"--tasks", path});
  const size_t total = 500 / stride;
  const auto row = [](const std::string& name, size_t count) {
    const std::string share = absl::StrFormat("%5d / %-5d  100.0%%", count, count);
    return absl::StrFormat("%-21s %s  by bytes %s\n", name, share, share);
  };
  EXPECT_THAT(out, HasSubstr(row("elementary_arithmetic", total / 5)));
  EXPECT_THAT(out, HasSubstr(row("all choices", total)));
}

TEST(EvalChoicesTest, LogProbabilitiesAreThoseOfTransformers) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const std::unique_ptr<TextModel> text = MustLoadText(checkpoint->config());
  const auto pipeline = LocalPipeline::Create(*checkpoint, {});
  ASSERT_TRUE(pipeline.ok()) << pipeline.status();
  for (const nlohmann::json& golden : ReadLines("tiny-r1-mmlu.jsonl", 50)) {
    for (size_t i = 0; i < kLetters.size(); ++i) {
      JobSpec spec;
      spec.prompt = *text->tokenizer().Encode(golden["prompt"].get<std::string>());
      text->BeginText(spec.prompt);
      const std::vector<int32_t> choice = *text->tokenizer().Encode(kLetters[i]);
      spec.prompt.insert(spec.prompt.end(), choice.begin(), choice.end());
      spec.score_prompt = true;
      const auto job = (*pipeline)->driver().Submit(spec);
      ASSERT_TRUE(job.ok()) << job.status();
      const auto tokens = ReadPromptScores(**job);
      ASSERT_TRUE(tokens.ok()) << tokens.status();
      ChoiceScores scores;
      scores.Add(kLetters[i], *tokens, choice.size());
      // The goldens have 6 decimals, of sums in float.
      EXPECT_NEAR(scores.log_probabilities()[0], golden["logprobs"][i].get<double>(), 1e-4);
    }
  }
}

TEST(EvalChoicesTest, ChatQuestionsAndPlainAnswersShareAFile) {
  // Beginnings of the thought, of which the model has learned one.
  TestCluster cluster;
  const std::string path = cluster.dir().Write(
      "tasks.jsonl",
      R"({"task": "sum", "question": "What is 12 + 43?", "answer": "12 + 43 = 55"})"
      "\n"
      R"({"task": "sum", "question": "What is 12 + 43?", "choices": ["<think>\n2+3=6", "<think>\n2+3=5", "<think>\n2+4=5"], "answer": 1})"
      "\n"
      R"({"task": "wrong", "question": "What is 12 + 43?", "choices": ["<think>\n2+3=6", "<think>\n2+3=5"], "answer": "<think>\n2+3=6"})"
      "\n");
  for (const std::string jobs : {"1", "2", "8"}) {
    EXPECT_EQ(Eval(cluster, {"--tasks", path, "--jobs", jobs}),
              "sum                  1 / 1      100.0%\n"
              "all                  1 / 1      100.0%\n"
              "sum                  1 / 1      100.0%  by bytes     1 / 1      100.0%\n"
              "wrong                0 / 1        0.0%  by bytes     0 / 1        0.0%\n"
              "all choices          1 / 2       50.0%  by bytes     1 / 2       50.0%\n");
  }
}

TEST(EvalChoicesTest, APromptPastTheContextIsNamedByItsLine) {
  TestCluster cluster;
  const nlohmann::json task = {
      {"prompt", std::string(20000, 'x')}, {"choices", {"a", "b"}}, {"answer", 0}};
  const std::string path = cluster.dir().Write("tasks.jsonl", "\n" + task.dump());
  TestProcess& eval =
      cluster.Launch("eval", {"eval", "--model", kTinyR1.directory, "--tasks", path});
  EXPECT_EQ(eval.Wait(), 2) << eval.Transcript();
  EXPECT_THAT(eval.Err(), HasSubstr(path + ":2: the prompt has "));
  EXPECT_THAT(eval.Err(), HasSubstr("more than the context of 4096"));
}

}  // namespace
}  // namespace caravan
