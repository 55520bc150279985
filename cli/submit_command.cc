// caravan submit: hand in a file of requests as a batch, and perhaps wait for its output.

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/output_file.h"
#include "base/status_macros.h"
#include "cli/batch_client.h"
#include "cli/commands.h"
#include "cli/job_table.h"
#include "cli/progress_bar.h"
#include "cli/stop_signals.h"
#include "coordinator/batch/batch.h"

namespace caravan {
namespace {

struct SubmitFlags {
  ClientFlags client;
  std::string file;
  std::string endpoint = "/v1/chat/completions";
  bool wait = false;
  std::string output;
};

void Say(absl::string_view text) {
  std::fputs(absl::StrCat(text, "\n").c_str(), stderr);
  std::fflush(stderr);
}

absl::Status WriteTo(std::FILE* file, absl::string_view bytes, absl::string_view name) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size() && std::fflush(file) == 0) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(name, " cannot be written"));
}

/// One run of the command.
class Submission {
 public:
  explicit Submission(const SubmitFlags& flags)
      : flags_(flags), bar_(flags.file, ProgressBar::Unit::kLines) {}

  /// Whether every line succeeded, as far as that was waited for.
  absl::StatusOr<bool> Run() {
    CARAVAN_ASSIGN_OR_RETURN(const std::string content, ReadFile(flags_.file, kMaxUploadBytes));
    if (content.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(flags_.file, ": the file is empty"));
    }
    std::unique_ptr<OutputFile> output;  // made now, so that a wrong path does not show hours later
    if (!flags_.output.empty()) {
      absl::StatusOr<std::unique_ptr<OutputFile>> made = OutputFile::Create(flags_.output);
      if (!made.ok()) return Annotate(made.status(), "--output");
      output = *std::move(made);
    }
    CARAVAN_ASSIGN_OR_RETURN(
        client_, BatchClient::Connect({flags_.client, signals_.token(),
                                       [this](const absl::Status& why) { TellAway(why); }}));
    CARAVAN_RETURN_IF_ERROR(Submit(content));
    CARAVAN_ASSIGN_OR_RETURN(const v1::Batch batch, Wait());
    if (batch.state() == v1::BATCH_STATE_FAILED) return Refused(batch);
    if (!flags_.wait) return true;
    CARAVAN_RETURN_IF_ERROR(StillThere(Collect(output.get())));
    Say(absl::StrCat(batch_id_, " is ", BatchStateName(batch.state()), ": ",
                     batch.completed_lines(), " of ", batch.total_lines(), " lines done, ",
                     batch.failed_lines(), " failed"));
    return batch.state() == v1::BATCH_STATE_COMPLETED && batch.failed_lines() == 0;
  }

 private:
  absl::Status Submit(const std::string& content) {
    v1::BatchHeader header;
    header.set_filename(std::filesystem::path(flags_.file).filename().string());
    header.set_endpoint(flags_.endpoint);
    header.set_content_bytes(content.size());
    const absl::StatusOr<v1::Batch> batch = client_->Submit(header, content);
    if (absl::IsCancelled(batch.status())) {
      return absl::CancelledError(
          absl::StrCat("stopped while ", flags_.file,
                       " was on its way; caravan jobs shows whether there is a batch of it"));
    }
    if (!batch.ok()) return Annotate(batch.status(), flags_.file);
    batch_id_ = batch->batch_id();
    // Standard output is the replies', where they are waited for.
    std::fprintf(flags_.wait ? stderr : stdout, "%s\n", batch_id_.c_str());
    std::fflush(nullptr);
    return absl::OkStatus();
  }

  /// Until the lines are found right or wrong; with --wait until the batch has ended.
  absl::StatusOr<v1::Batch> Wait() {
    absl::StatusOr<v1::Batch> batch = client_->Wait(batch_id_, [this](const v1::Batch& news) {
      if (news.state() == v1::BATCH_STATE_VALIDATING) return false;
      if (flags_.wait && news.total_lines() > 0) ShowProgress(news);
      return !flags_.wait;
    });
    bar_.Break();
    if (!batch.ok()) return StillThere(batch.status());
    return batch;
  }

  void ShowProgress(const v1::Batch& batch) {
    const int64_t done = int64_t{batch.completed_lines()} + batch.failed_lines();
    if (!std::exchange(bar_begun_, true)) bar_.Show(0, batch.total_lines());
    if (done > shown_) bar_.Show(done, batch.total_lines());
    shown_ = done;
  }

  void TellAway(const absl::Status& why) {
    bar_.Break();
    Say(absl::StrCat("caravan: ", why.message(), "; waiting for it to come back"));
  }

  /// Of an error while waiting: what becomes of the batch.
  absl::Status StillThere(const absl::Status& status) const {
    if (absl::IsCancelled(status)) {
      return absl::CancelledError(absl::StrCat(
          "no longer waiting; ", batch_id_, " goes on (caravan cancel ", batch_id_, " ends it)"));
    }
    return Annotate(status, batch_id_);
  }

  absl::Status Refused(const v1::Batch& batch) const {
    for (const v1::BatchError& error : batch.errors()) {
      const std::string place =
          error.line() == 0 ? flags_.file : absl::StrCat(flags_.file, ":", error.line());
      Say(absl::StrCat("caravan: ", place, ": ", error.message()));
    }
    return absl::InvalidArgumentError(
        absl::StrCat(flags_.file, " was not begun: ", batch_id_, " has failed"));
  }

  absl::Status Collect(OutputFile* output) {
    CARAVAN_RETURN_IF_ERROR(
        client_->Read(batch_id_, v1::BATCH_OUTPUT_REPLIES, [&](absl::string_view piece) {
          return output != nullptr ? output->Write(piece)
                                   : WriteTo(stdout, piece, "standard output");
        }));
    if (output != nullptr) CARAVAN_RETURN_IF_ERROR(output->Commit());
    return client_->Read(batch_id_, v1::BATCH_OUTPUT_ERRORS, [](absl::string_view piece) {
      return WriteTo(stderr, piece, "standard error");
    });
  }

  const SubmitFlags& flags_;
  StopSignals signals_;
  ProgressBar bar_;
  bool bar_begun_ = false;
  int64_t shown_ = 0;  // lines
  std::unique_ptr<BatchClient> client_;
  std::string batch_id_;
};

}  // namespace

void AddSubmitCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command = app.add_subcommand(
      "submit",
      "Hand in a file of requests as a batch, and print its id; the batch goes on by itself");
  const auto flags = std::make_shared<SubmitFlags>();
  AddConfigOption(*command);
  flags->client.AddTo(*command);
  command
      ->add_option("file", flags->file,
                   "JSON lines in the form of OpenAI's Batch API: {\"custom_id\": ..., \"method\": "
                   "\"POST\", \"url\": ..., \"body\": ...}; at most 128 MiB and 50,000 lines")
      ->required()
      ->type_name("FILE");
  command->add_option("--endpoint", flags->endpoint, "The url of every line")
      ->capture_default_str();
  CLI::Option* const wait = command->add_flag(
      "--wait", flags->wait,
      "Wait for the batch's end, then print its replies, and on standard error its id and the "
      "lines that failed. Ctrl-C ends the waiting, not the batch; a coordinator that goes away is "
      "waited "
      "for as --connect-timeout says");
  command
      ->add_option("--output", flags->output,
                   "With --wait: write the replies to FILE, once all are there")
      ->type_name("FILE")
      ->needs(wait);
  command->callback([flags, &body] {
    body = [flags] {
      const absl::StatusOr<bool> done = Submission(*flags).Run();
      if (!done.ok()) return ReportStatus(done.status());
      return *done ? kExitOk : kExitFailed;
    };
  });
}

}  // namespace caravan
