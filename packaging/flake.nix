# nix run --no-write-lock-file 'github:claude-openai/claude-openai?dir=packaging' -- --demo
#
# It builds the sources that it lies in, so there is no checksum to fill in. The lock file that pins nixpkgs is made by
# `nix flake lock ./packaging`; with it the flag above is not needed.
{
  description = "OpenAI- and Anthropic-compatible proxy over Claude Code";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { nixpkgs, ... }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "aarch64-darwin"
      ];
      package =
        pkgs:
        pkgs.stdenv.mkDerivation {
          pname = "claude-openai";
          version = "1.0.0";
          src = ../.;

          strictDeps = true;
          nativeBuildInputs = [ pkgs.pkg-config ];
          buildInputs = with pkgs; [
            brotli
            cli11
            hiredis
            httplib
            nlohmann_json
            openssl
            sqlite
            zlib
          ];

          # The single header of cpp-httplib comes without a file of pkg-config's by that name.
          env.CPPFLAGS = "-DCPPHTTPLIB_OPENSSL_SUPPORT -DCPPHTTPLIB_ZLIB_SUPPORT -DCPPHTTPLIB_BROTLI_SUPPORT";
          env.LDLIBS =
            "-lz -lbrotlienc -lbrotlidec"
            + pkgs.lib.optionalString pkgs.stdenv.isDarwin " -framework CFNetwork -framework CoreFoundation -framework Security";
          makeFlags = [ "PREFIX=${placeholder "out"}" ];
          buildFlags = [ "build/claude-openai" ];
          postPatch = "patchShebangs .ci";
          enableParallelBuilding = true;

          doInstallCheck = true;
          installCheckPhase = "$out/bin/claude-openai --version";

          meta = {
            description = "OpenAI- and Anthropic-compatible proxy over Claude Code";
            homepage = "https://github.com/claude-openai/claude-openai";
            license = pkgs.lib.licenses.mit;
            mainProgram = "claude-openai";
            platforms = systems;
          };
        };
    in
    {
      packages = nixpkgs.lib.genAttrs systems (system: {
        default = package nixpkgs.legacyPackages.${system};
      });
    };
}
