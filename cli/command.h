#ifndef CARAVAN_CLI_COMMAND_H_
#define CARAVAN_CLI_COMMAND_H_

// What the subcommands of `caravan` share.

#include <functional>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "base/dtype.h"
#include "kernels/cpu/row_ops.h"

namespace caravan {

/// What runs once the command line is parsed: returns the process's exit code.
using CommandBody = std::function<int()>;

/// Exit codes, the same for every subcommand.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;  // it ran, and the answer is no: a check failed, a job failed
inline constexpr int kExitUsage = 2;   // a wrong flag, or an input that cannot be used
inline constexpr int kExitUnavailable = 3;  // somebody who is needed is not there
inline constexpr int kExitInterrupted = 130;

/// Prints "caravan: <message>" on standard error unless OK; returns the exit code that goes with
/// it.
int ReportStatus(const absl::Status& status);

/// Lets the subcommand's options come from a file too: --config FILE, lines of option = value.
void AddConfigOption(CLI::App& command);

/// An option of a size, such as 11.2GiB, that must be more than 0. Borrows `bytes`, which keeps its
/// value without the option.
CLI::Option* AddByteSizeOption(CLI::App& command, const std::string& name, int64_t& bytes,
                               const std::string& help);

/// The option --speculate mtp|off. Borrows `speculate`, which keeps its value without the option.
void AddSpeculateOption(CLI::App& command, bool& speculate);

/// The option --kv f32|f16|q8_0. Borrows `dtype`, which keeps its value without the option.
void AddKvOption(CLI::App& command, DType& dtype);

/// The option --share-files PERCENT. Borrows `percent`, which keeps its value without the option.
inline constexpr double kDefaultSharePercent = 5;
void AddShareFilesOption(CLI::App& command, double& percent);

/// What every --model but the worker's takes.
inline constexpr char kModelHelp[] =
    "The model: a directory in Hugging Face's layout or made by caravan pack, or a GGUF file";

/// The option --isa auto|portable|avx2|avx512. Borrows `isa`, which keeps its value without the
/// option.
void AddIsaOption(CLI::App& command, CpuIsa& isa);

/// As --isa spells it.
std::string IsaOptionName(CpuIsa isa);

/// As --kv spells it.
std::string KvOptionName(DType dtype);

}  // namespace caravan

#endif  // CARAVAN_CLI_COMMAND_H_
