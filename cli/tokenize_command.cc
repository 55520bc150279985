// caravan tokenize: text to token ids and back, line by line.

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "base/status_macros.h"
#include "cli/command.h"
#include "cli/commands.h"
#include "model/tokenizer.h"

namespace caravan {
namespace {

using nlohmann::json;

struct TokenizeOptions {
  std::string tokenizer_path;
  std::string input_path;  // empty: standard input
  bool decode = false;
};

absl::StatusOr<std::vector<int32_t>> ReadIds(const JsonFields& fields) {
  CARAVAN_ASSIGN_OR_RETURN(const json* const values, fields.Array("ids"));
  std::vector<int32_t> ids;
  ids.reserve(values->size());
  for (const json& value : *values) {
    // An unsigned number past 2^63 reads as negative here.
    const int64_t id = value.is_number_integer() ? value.get<int64_t>() : -1;
    if (id < 0 || id >= kMaxVocabSize) {
      return fields.Error("ids", absl::StrCat("must hold integers from 0 to ", kMaxVocabSize - 1));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

/// The answer to one line. `origin` names the line in errors.
absl::StatusOr<json> Answer(const Tokenizer& tokenizer, bool decode, const std::string& line,
                            const std::string& origin) {
  CARAVAN_ASSIGN_OR_RETURN(const json question, ParseJson(line, origin));
  CARAVAN_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Of(question, origin));
  json answer;
  if (decode) {
    CARAVAN_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ReadIds(fields));
    absl::StatusOr<std::string> text = tokenizer.Decode(ids);
    if (!text.ok())
      return fields.Error("ids", absl::StrCat("cannot be decoded: ", text.status().message()));
    answer["text"] = *std::move(text);
  } else {
    CARAVAN_ASSIGN_OR_RETURN(const std::string text, fields.String("text"));
    absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(text);
    if (!ids.ok())
      return fields.Error("text", absl::StrCat("cannot be encoded: ", ids.status().message()));
    answer["ids"] = *std::move(ids);
  }
  return answer;
}

int RunTokenize(const TokenizeOptions& options) {
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      Tokenizer::Load(options.tokenizer_path);
  if (!tokenizer.ok()) return ReportStatus(tokenizer.status());

  std::ifstream file;
  if (!options.input_path.empty()) {
    file.open(options.input_path);
    if (!file) return ReportStatus(absl::ErrnoToStatus(errno, options.input_path));
  }
  std::istream& input = options.input_path.empty() ? std::cin : file;
  const std::string name = options.input_path.empty() ? "standard input" : options.input_path;

  std::string line;
  for (int64_t number = 1; std::getline(input, line); ++number) {
    const absl::StatusOr<json> answer =
        Answer(**tokenizer, options.decode, line, absl::StrCat(name, ": line ", number));
    if (!answer.ok()) return ReportStatus(answer.status());
    const std::string out = absl::StrCat(answer->dump(), "\n");
    // Flushed line by line, for whoever asks one question at a time.
    if (std::fwrite(out.data(), 1, out.size(), stdout) != out.size() || std::fflush(stdout) != 0) {
      if (errno == EPIPE) return kExitOk;  // the reader has what it wanted
      return ReportStatus(
          absl::DataLossError(absl::ErrnoToStatus(errno, "standard output").message()));
    }
  }
  // A directory opens, and then does not read.
  if (input.bad()) {
    return ReportStatus(absl::InvalidArgumentError(absl::StrCat(name, ": cannot be read")));
  }
  return kExitOk;
}

}  // namespace

void AddTokenizeCommand(CLI::App& app, CommandBody& body) {
  const auto options = std::make_shared<TokenizeOptions>();
  CLI::App* const command = app.add_subcommand(
      "tokenize",
      "Turn text into token ids: reads JSON lines {\"text\": ...}, writes {\"ids\": [...]}.\n"
      "No special tokens are added; those spelt out in the text count.");
  command->add_option("--tokenizer", options->tokenizer_path, "The model's tokenizer.json")
      ->required()
      ->type_name("FILE");
  command->add_option("--input", options->input_path, "Read lines from FILE, not standard input")
      ->type_name("FILE");
  command->add_flag("--decode", options->decode,
                    "The other way: read {\"ids\": [...]}, write {\"text\": ...}");
  AddConfigOption(*command);
  command->callback([options, &body] { body = [options] { return RunTokenize(*options); }; });
}

}  // namespace caravan
