# Homebrew's formula. To build the newest commit: brew install --HEAD ./packaging/claude-openai.rb
class ClaudeOpenai < Formula
  desc "OpenAI- and Anthropic-compatible proxy over Claude Code"
  homepage "https://github.com/claude-openai/claude-openai"
  url "https://github.com/claude-openai/claude-openai/releases/download/v1.0.0/claude-openai-1.0.0.tar.gz"
  # A release fills this in: the file claude-openai.rb beside its downloads has the checksum.
  sha256 "0000000000000000000000000000000000000000000000000000000000000000"
  license "MIT"
  head "https://github.com/claude-openai/claude-openai.git", branch: "main"

  depends_on "cli11" => :build
  depends_on "cpp-httplib" => :build
  depends_on "make" => :build # the system's is older than 4.3
  depends_on "nlohmann-json" => :build
  depends_on "pkgconf" => :build
  depends_on "brotli"
  depends_on "hiredis"
  depends_on "openssl@3"
  depends_on "sqlite"

  uses_from_macos "zlib"

  # Homebrew's cpp-httplib is a single header without a file of pkg-config's.
  def flags
    defines = %w[OPENSSL ZLIB BROTLI].map { |name| "-DCPPHTTPLIB_#{name}_SUPPORT" }
    libraries = %w[-lz -lbrotlienc -lbrotlidec]
    libraries += %w[CFNetwork CoreFoundation Security].map { |name| "-framework #{name}" } if OS.mac?
    ["CPPFLAGS=#{defines.join(" ")}", "LDLIBS=#{libraries.join(" ")}", "PREFIX=#{prefix}"]
  end

  def install
    system "gmake", "build/claude-openai", *flags
    system "gmake", "install", *flags
  end

  service do
    run [opt_bin/"claude-openai", "--no-prompt"]
    keep_alive true
    environment_variables PATH: std_service_path_env
    log_path var/"log/claude-openai.log"
    error_log_path var/"log/claude-openai.log"
  end

  def caveats
    <<~EOS
      It needs the claude CLI: npm install -g @anthropic-ai/claude-code
      `claude-openai doctor` checks that everything is there.
    EOS
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/claude-openai --version") unless head?
    port = free_port
    proxy = spawn bin/"claude-openai", "--demo", "--port", port.to_s
    begin
      system "curl", "--fail", "--silent", "--retry", "10", "--retry-connrefused", "http://127.0.0.1:#{port}/health"
    ensure
      Process.kill "TERM", proxy
      Process.wait proxy
    end
  end
end
